"""Writes the built-in demo model as a GGUF file, so that another engine can serve the same model.

    python benches/peers/demo_gguf.py demo.gguf          # needs: pip install gguf numpy

The demo is a Qwen3 decoder in bf16 with a byte-level BPE whose words are split as Qwen2's are.
Weights go over as f32: a widened bf16 is the same number.
"""

import json
import pathlib
import sys

import gguf
import numpy

MODEL = pathlib.Path(__file__).parents[2] / "engine/demo/model"

# Names of tensors, ours to GGUF's.
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors():
    """Names and values of all tensors, as f32."""
    data = (MODEL / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        first, last = (begin + offset for offset in entry["data_offsets"])
        halves = numpy.frombuffer(data[first:last], numpy.uint16).astype(numpy.uint32)
        yield name, (halves << 16).view(numpy.float32).reshape(entry["shape"])


def renamed(name):
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return OUTSIDE[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def main(path):
    config = json.loads((MODEL / "config.json").read_text())
    text = json.loads((MODEL / "tokenizer_config.json").read_text())
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())

    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("pagoda-demo")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    vocabulary = {**tokenizer["model"]["vocab"]}
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    names = {index: name for name, index in {**vocabulary, **special}.items()}
    kinds = [
        gguf.TokenType.CONTROL if names[index] in special else gguf.TokenType.NORMAL
        for index in range(config["vocab_size"])
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([names[index] for index in range(config["vocab_size"])])
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(text["chat_template"])

    for name, values in tensors():
        writer.add_tensor(renamed(name), numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
