"""The checkpoints of tests/goldens: shapes, and random weights scaled so that faults show.

Every matrix is drawn so that what it yields has a chosen size: attention logits have a standard deviation near 1.5
(peaked, not saturated), logits about 2, and the residual stream is small enough for rms_norm_eps to matter.
"""

import math
import zlib

import torch
from transformers import (Gemma2Config, Gemma3Config, Gemma3TextConfig, GemmaConfig, Glm4Config, GlmConfig, LlamaConfig,
                          MistralConfig, MixtralConfig, Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig)

MAX_LEN = 2048  # the maximum model length at which every rope scaling is resolved
EMBED = 4  # rms of the residual stream where it starts, in roots of rms_norm_eps
QUERY = 1.2  # rms of queries and keys: logits q.k/sqrt(d) get a deviation near QUERY squared
LOGIT = 2.0  # deviation of the output logits
NORM = 1.04  # rms of a norm weight drawn from 0.5..1.5

LLAMA = dict(num_hidden_layers=2, intermediate_size=136, vocab_size=331, max_position_embeddings=MAX_LEN,
             rms_norm_eps=1e-5)
QWEN = dict(num_hidden_layers=2, intermediate_size=136, vocab_size=331, max_position_embeddings=MAX_LEN,
            rms_norm_eps=1e-6, eos_token_id=2)
GEMMA = dict(num_hidden_layers=2, intermediate_size=128, vocab_size=331, max_position_embeddings=MAX_LEN,
             rms_norm_eps=1e-5)
GLM = dict(num_hidden_layers=2, intermediate_size=136, vocab_size=331, max_position_embeddings=MAX_LEN,
           eos_token_id=[2, 6], pad_token_id=0)
# The least that transformers takes for a vision tower: nothing of it is served.
VISION = dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
              num_attention_heads=1, image_size=28, patch_size=14)


def heads(hidden, query, kv, head_dim=None):
    shape = dict(hidden_size=hidden, num_attention_heads=query, num_key_value_heads=kv)
    return shape if head_dim is None else shape | dict(head_dim=head_dim)


def rope(theta, rope_type="default", **more):
    return dict(rope_parameters=dict(rope_theta=theta, rope_type=rope_type, **more))


def ropes(theta, window_theta, rope_type="default", **more):
    """One for layers that see all, one for those with a window."""
    full = dict(rope_theta=theta, rope_type=rope_type, **more)
    return dict(rope_parameters=dict(full_attention=full,
                                     sliding_attention=dict(rope_theta=window_theta, rope_type="default")))


def longrope_factors(half, low, high):
    """Factors that grow along the dimensions, irregular in the last digit."""
    return [round(low + (high - low) * (i / (half - 1)) ** 1.5 + 0.01 * (i * 7 % 5), 4) for i in range(half)]


def build_cases():
    long_factor, short_factor = longrope_factors(40, 1.0, 9.0), longrope_factors(40, 1.0, 1.6)
    moe = QWEN | dict(moe_intermediate_size=40)
    return {
        "llama2": LlamaConfig(**LLAMA, **heads(96, 2, 2), **rope(10000.0)),
        "llama3": LlamaConfig(**LLAMA, **heads(80, 5, 1, 64), tie_word_embeddings=True, bos_token_id=3,
                              eos_token_id=[4, 5], **rope(
            500000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=256)),
        "llama_linear": LlamaConfig(**LLAMA, **heads(96, 6, 2, 48), **rope(10000.0, "linear", factor=4.0)),
        "llama_dynamic": LlamaConfig(**LLAMA | dict(max_position_embeddings=512, vocab_size=307),
                                     **heads(80, 4, 2, 64), **rope(10000.0, "dynamic", factor=2.0)),
        "llama_yarn": LlamaConfig(**LLAMA | dict(intermediate_size=152), **heads(80, 4, 2, 48), **rope(
            10000.0, "yarn", factor=8.0, original_max_position_embeddings=256)),
        "llama_longrope": LlamaConfig(**LLAMA | dict(vocab_size=293), **heads(80, 4, 2, 80), **rope(
            10000.0, "longrope", long_factor=long_factor, short_factor=short_factor,
            original_max_position_embeddings=256)),
        "qwen2": Qwen2Config(**QWEN, **heads(144, 3, 1), tie_word_embeddings=True, **rope(1000000.0)),
        "qwen2_window": Qwen2Config(**QWEN | dict(num_hidden_layers=3), **heads(80, 4, 2, 64), **rope(10000.0),
                                    use_sliding_window=True, sliding_window=50, max_window_layers=1),
        "qwen3": Qwen3Config(**QWEN, **heads(80, 5, 1, 48), tie_word_embeddings=True, **rope(1000000.0)),
        "qwen3_moe": Qwen3MoeConfig(**moe | dict(num_hidden_layers=3), **heads(80, 4, 2, 48), **rope(1000000.0),
                                    num_experts=7, num_experts_per_tok=3, norm_topk_prob=True, mlp_only_layers=[0],
                                    tie_word_embeddings=True),
        "qwen3_moe_sharded": Qwen3MoeConfig(**moe, **heads(96, 6, 2, 48), **rope(10000.0), num_experts=5,
                                            num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2),
        "mistral": MistralConfig(**LLAMA, **heads(80, 4, 2, 48), **rope(10000.0), sliding_window=50),
        "mixtral": MixtralConfig(**LLAMA | dict(intermediate_size=40), **heads(80, 4, 2, 48), **rope(1000000.0),
                                 num_local_experts=6, num_experts_per_tok=2),
        "gemma": GemmaConfig(**GEMMA, **heads(80, 4, 1, 64), **rope(10000.0)),
        "gemma2": Gemma2Config(**GEMMA, **heads(64, 2, 1, 256), **rope(10000.0), sliding_window=50,
                               query_pre_attn_scalar=144, attn_logit_softcapping=5.0, final_logit_softcapping=6.0),
        "gemma3": Gemma3TextConfig(**GEMMA | dict(num_hidden_layers=7, intermediate_size=80), **heads(48, 4, 2, 32),
                                   **ropes(1000000.0, 10000.0), sliding_window=50, query_pre_attn_scalar=48),
        "gemma3_nested": Gemma3Config(eos_token_id=[1, 106], vision_config=VISION, text_config=dict(
            GEMMA | dict(num_hidden_layers=6, intermediate_size=64, max_position_embeddings=131072, rms_norm_eps=1e-6),
            **heads(48, 8, 4, 16), **ropes(1000000.0, 10000.0, "linear", factor=8.0), sliding_window=65)),
        "phi3": Phi3Config(**LLAMA | dict(pad_token_id=0, eos_token_id=2), **heads(96, 6, 2), **rope(10000.0),
                           sliding_window=50),
        "phi4_mini": Phi3Config(**LLAMA | dict(pad_token_id=0, eos_token_id=2), **heads(128, 4, 2),
                                original_max_position_embeddings=256, tie_word_embeddings=True,
                                sliding_window=262144, **rope(
            10000.0, "longrope", partial_rotary_factor=0.75, long_factor=longrope_factors(12, 1.0, 9.0),
            short_factor=longrope_factors(12, 1.0, 1.6))),
        "glm": GlmConfig(**GLM, **heads(80, 4, 2, 64), **rope(10000.0, partial_rotary_factor=0.5)),
        "glm4": Glm4Config(**GLM | dict(rms_norm_eps=1e-5), **heads(80, 4, 2, 48),
                           **rope(10000.0, partial_rotary_factor=0.5), attention_bias=False),
    }


def build_published_cases():
    """config.json of families that transformers lacks, as published."""
    qwen = dict(
        architectures=["QWenLMHeadModel"], attn_dropout_prob=0.0, bf16=False, emb_dropout_prob=0.0, fp16=False, fp32=False,
        hidden_size=96, initializer_range=0.02, intermediate_size=272, kv_channels=48, layer_norm_epsilon=1e-6,
        max_position_embeddings=MAX_LEN, model_type="qwen", no_bias=True, num_attention_heads=2, num_hidden_layers=2,
        onnx_safe=None, rotary_emb_base=10000, rotary_pct=1.0, scale_attn_weights=True, seq_length=MAX_LEN,
        tie_word_embeddings=False, tokenizer_class="QWenTokenizer", use_cache=True, use_dynamic_ntk=True,
        use_flash_attn="auto", use_logn_attn=True, vocab_size=331)
    glm = dict(
        architectures=["ChatGLMModel"], add_bias_linear=False, add_qkv_bias=True, apply_query_key_layer_scaling=True,
        apply_residual_connection_post_layernorm=False, attention_dropout=0.0, attention_softmax_in_fp32=True,
        bias_dropout_fusion=True, eos_token_id=2, ffn_hidden_size=104, fp32_residual_connection=False,
        hidden_dropout=0.0, hidden_size=128, kv_channels=32, layernorm_epsilon=1e-5, model_type="chatglm",
        multi_query_attention=True, multi_query_group_num=2, num_attention_heads=4, num_layers=2, original_rope=True,
        pad_token_id=0, padded_vocab_size=331, post_layer_norm=True, rmsnorm=True, seq_length=MAX_LEN,
        tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, vocab_size=331)
    return {
        "qwen": qwen,
        "qwen_long": qwen | dict(seq_length=512),  # a quarter of MAX_LEN: the base is stretched, queries grow
        "chatglm3": glm,
        "glm4_first": glm | dict(rope_ratio=500, layernorm_epsilon=1.5625e-07, eos_token_id=[2, 6, 7]),
    }


def published_shapes(c):
    """Every tensor of such a checkpoint."""
    hidden, vocab, shapes = c["hidden_size"], c.get("padded_vocab_size", c["vocab_size"]), {}
    if c["model_type"] == "qwen":
        inner = c["intermediate_size"] // 2
        layer = {"ln_1.weight": [hidden], "ln_2.weight": [hidden], "attn.c_attn.weight": [3 * hidden, hidden],
                 "attn.c_attn.bias": [3 * hidden], "attn.c_proj.weight": [hidden, hidden],
                 "mlp.w1.weight": [inner, hidden], "mlp.w2.weight": [inner, hidden],
                 "mlp.c_proj.weight": [hidden, inner]}
        shapes = {"transformer.wte.weight": [vocab, hidden], "transformer.ln_f.weight": [hidden],
                  "lm_head.weight": [vocab, hidden]}
        layers, path = c["num_hidden_layers"], "transformer.h"
    else:
        inner, rows = c["ffn_hidden_size"], hidden + 2 * c["multi_query_group_num"] * c["kv_channels"]
        layer = {"input_layernorm.weight": [hidden], "post_attention_layernorm.weight": [hidden],
                 "self_attention.query_key_value.weight": [rows, hidden],
                 "self_attention.query_key_value.bias": [rows], "self_attention.dense.weight": [hidden, hidden],
                 "mlp.dense_h_to_4h.weight": [2 * inner, hidden], "mlp.dense_4h_to_h.weight": [hidden, inner]}
        shapes = {"transformer.embedding.word_embeddings.weight": [vocab, hidden],
                  "transformer.encoder.final_layernorm.weight": [hidden],
                  "transformer.output_layer.weight": [vocab, hidden],
                  "transformer.rotary_pos_emb.inv_freq": [c["kv_channels"] // 4]}
        layers, path = c["num_layers"], "transformer.encoder.layers"
    return shapes | {f"{path}.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def text_of(config):
    """What describes the decoder, where a configuration describes more."""
    return getattr(config, "text_config", config)


def embed_size(config):
    """rms of the residual stream where it starts."""
    return EMBED * math.sqrt(config.rms_norm_eps)


def offset(config):
    """What a norm adds to its weights."""
    return 1.0 if config.model_type.startswith("gemma") else 0.0


def embed_factor(config):
    """What embeddings are multiplied by."""
    return math.sqrt(config.hidden_size) if config.model_type.startswith("gemma") else 1.0


def normed_query_size(config):
    """rms of queries and keys where they meet: logits as large as if divided by the root of the head size."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return QUERY * ((getattr(config, "query_pre_attn_scalar", None) or head_dim) / head_dim) ** 0.25


def query_size(config):
    """rms of queries and keys: tiny before a QK norm, so that its eps matters; less where rope makes them longer."""
    if "qwen3" in config.model_type or "gemma3" in config.model_type:
        return 3 * math.sqrt(config.rms_norm_eps)
    stretched = config.rope_parameters.get("rope_type") in ("yarn", "longrope")
    return normed_query_size(config) / (1.2 if stretched else 1)


def scale_of(name, shape, config):
    """The deviation from which a tensor is drawn, by what it yields."""
    hidden, fan_in = config.hidden_size, shape[-1]
    unit = 1 / (math.sqrt(hidden) * NORM)  # turns a normed row into values of rms 1
    embed = embed_size(config)
    for part, scale in [
        ("vision_tower", 0.02), ("multi_modal", 0.02), ("inv_freq", 0.1),  # read by nobody
        ("embed_tokens", embed / embed_factor(config)), ("lm_head", LOGIT * unit),
        ("qkv_proj.weight", query_size(config) * unit),
        ("q_proj.weight", query_size(config) * unit), ("k_proj.weight", query_size(config) * unit),
        ("v_proj.weight", unit), ("q_proj.bias", 0.5), ("k_proj.bias", 0.5), ("v_proj.bias", 0.3),
        ("qkv_proj.bias", 0.4),
        ("o_proj", 3 * embed / math.sqrt(fan_in)), ("mlp.gate.weight", 2 * unit),
        ("gate_up_proj", 1.5 * unit), ("gate_proj", 1.5 * unit), ("up_proj", 1.5 * unit),
        ("experts.down_proj", 6 * embed / math.sqrt(fan_in)), ("down_proj", 2 * embed / math.sqrt(fan_in)),
    ]:
        if part in name:
            return scale
    raise KeyError(name)


def norm_size(name, config):
    """The middle of a norm's weights."""
    if "q_norm" in name or "k_norm" in name:
        return normed_query_size(config)
    # Behind attention and MLP: as large as what two layers of other families add, however many there are.
    added = embed_size(config) * math.sqrt(2 / config.num_hidden_layers)
    if "post_self_attn" in name or config.model_type in ("gemma2", "gemma3_text") and "post_attention" in name:
        return 3 * added
    if "post_feedforward" in name or "post_mlp" in name:
        return 2 * added
    is_final = name.endswith(("model.norm.weight", "language_model.norm.weight"))
    if is_final and config.tie_word_embeddings:  # the head is as small as the embedding
        return LOGIT * embed_factor(config) / (EMBED * math.sqrt(config.rms_norm_eps * config.hidden_size) * NORM)
    return 1.0


def fill(named_tensors, config):
    """Draws every weight from a seed of its name, rounded to what bf16 can hold."""
    config = text_of(config)
    with torch.no_grad():
        for name, tensor in named_tensors:
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if "norm" in name and "vision" not in name:
                size = norm_size(name, config)
                tensor.uniform_(0.5 * size - offset(config), 1.5 * size - offset(config), generator=draw)
            else:
                tensor.normal_(0, scale_of(name, tensor.shape, config), generator=draw)
            tensor.copy_(tensor.bfloat16().float())
