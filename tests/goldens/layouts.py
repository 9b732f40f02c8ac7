"""What families call things, and what they leave unsaid: every checkpoint in the words of Llama.

Written from the published files and the published decoders, for reference.py; knows nothing of the engine.
"""

import json
import math
import re
from pathlib import Path

from safetensors.torch import load_file

GEMMA_NORMS = [("post_attention_layernorm", "attn_post_norm"), ("pre_feedforward_layernorm", "mlp_norm"),
               ("post_feedforward_layernorm", "mlp_post_norm")]

# What a decoder does that its config.json does not say.
TRAITS = {
    "gemma": dict(norm_offset=1.0, scaled_embedding=True, activation="gelu"),
    "gemma2": dict(norm_offset=1.0, scaled_embedding=True, activation="gelu"),
    "gemma3_text": dict(norm_offset=1.0, scaled_embedding=True, activation="gelu", qk_norm="before"),
    "qwen3": dict(qk_norm="before"),
    "qwen3_moe": dict(qk_norm="before"),
    "mixtral": dict(renormalise=True),
    "glm": dict(rope_style="pairs"),
    "glm4": dict(rope_style="pairs"),
    "chatglm": dict(rope_style="pairs"),
}

# Names of tensors, from the file's to Llama's; norms get names of their own.
NAMES = {
    "gemma2": GEMMA_NORMS,
    "gemma3_text": [(r"^language_model\.", "")] + GEMMA_NORMS,
    "glm4": [("post_attention_layernorm", "mlp_norm"), ("post_self_attn_layernorm", "attn_post_norm"),
             ("post_mlp_layernorm", "mlp_post_norm")],
    "mixtral": [("block_sparse_moe", "mlp"), (r"\.w1\.", ".gate_proj."), (r"\.w3\.", ".up_proj."),
                (r"\.w2\.", ".down_proj.")],
    "qwen": [(r"transformer\.h\.", "model.layers."), (r"transformer\.wte", "model.embed_tokens"),
             (r"transformer\.ln_f", "model.norm"), ("ln_1", "attn_norm"), ("ln_2", "mlp_norm"),
             (r"attn\.c_attn", "self_attn.qkv_proj"), (r"attn\.c_proj", "self_attn.o_proj"),
             (r"mlp\.w2", "mlp.gate_proj"), (r"mlp\.w1", "mlp.up_proj"), (r"mlp\.c_proj", "mlp.down_proj")],
    "chatglm": [(r"transformer\.encoder\.layers", "model.layers"), (r"transformer\.embedding\.word_embeddings",
                "model.embed_tokens"), (r"transformer\.encoder\.final_layernorm", "model.norm"),
                (r"transformer\.output_layer", "lm_head"), (r"self_attention\.query_key_value", "self_attn.qkv_proj"),
                (r"self_attention\.dense", "self_attn.o_proj"), ("dense_h_to_4h", "gate_up_proj"),
                ("dense_4h_to_h", "down_proj")],
}
FOR_ALL = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm")]


def read_config(folder):
    """config.json with Llama's field names, `rope_parameters` of transformers 5, and the decoder's traits."""
    whole = json.loads((Path(folder) / "config.json").read_text())
    c = whole.get("text_config", whole)
    kind = c["model_type"]
    if kind == "qwen":
        c = c | dict(rms_norm_eps=c["layer_norm_epsilon"], head_dim=c["kv_channels"],
                     num_key_value_heads=c["num_attention_heads"],
                     rope_parameters=dict(rope_type="stepped" if c["use_dynamic_ntk"] else "default",
                                          rope_theta=c["rotary_emb_base"], trained=c["seq_length"]),
                     query_log_base=c["seq_length"] if c["use_logn_attn"] else None)
    if kind == "chatglm":
        c = c | dict(rms_norm_eps=c["layernorm_epsilon"], head_dim=c["kv_channels"],
                     num_key_value_heads=c["multi_query_group_num"], num_hidden_layers=c["num_layers"],
                     max_position_embeddings=c["seq_length"],
                     rope_parameters=dict(rope_type="default", rope_theta=10000.0 * c.get("rope_ratio", 1),
                                          partial_rotary_factor=0.5))
    if kind == "mixtral":
        c = c | dict(num_experts=c["num_local_experts"])
    if kind.startswith("gemma"):
        c = c | dict(embed_scale=math.sqrt(c["hidden_size"]))
    c["traits"] = TRAITS.get(kind, {})
    return c


def rename(name, kind):
    for pattern, by in NAMES.get(kind, []) + FOR_ALL:
        name = re.sub(pattern, by, name)
    return name


def read_weights(folder, dtype):
    """Every tensor under Llama's name, fused ones apart."""
    c, weights = read_config(folder), {}
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    rows = [n * head_dim for n in [c["num_attention_heads"]] + 2 * [c["num_key_value_heads"]]]
    for file in sorted(Path(folder).glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            name, tensor = rename(name, c["model_type"]), tensor.to(dtype)
            if ".qkv_proj." in name:
                for part, piece in zip("qkv", tensor.split(rows)):
                    weights[name.replace("qkv_proj", f"{part}_proj")] = piece
            elif ".gate_up_proj." in name:
                for part, piece in zip(["gate", "up"], tensor.chunk(2)):
                    weights[name.replace("gate_up_proj", f"{part}_proj")] = piece
            else:
                weights[name] = tensor
    return weights
