"""The checkpoints of tests/goldens: shapes, and random weights scaled so that faults show.

Every matrix is drawn so that what it yields has a chosen size: attention logits have a standard deviation near 1.5
(peaked, not saturated), logits about 2, and the residual stream is small enough for rms_norm_eps to matter.
"""

import math
import zlib

import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

MAX_LEN = 2048  # the maximum model length at which every rope scaling is resolved
EMBED = 4  # rms of the residual stream where it starts, in roots of rms_norm_eps
QUERY = 1.2  # rms of queries and keys: logits q.k/sqrt(d) get a deviation near QUERY squared
LOGIT = 2.0  # deviation of the output logits
NORM = 1.04  # rms of a norm weight drawn from 0.5..1.5

LLAMA = dict(num_hidden_layers=2, intermediate_size=136, vocab_size=331, max_position_embeddings=MAX_LEN,
             rms_norm_eps=1e-5)
QWEN = dict(num_hidden_layers=2, intermediate_size=136, vocab_size=331, max_position_embeddings=MAX_LEN,
            rms_norm_eps=1e-6, eos_token_id=2)


def heads(hidden, query, kv, head_dim=None):
    shape = dict(hidden_size=hidden, num_attention_heads=query, num_key_value_heads=kv)
    return shape if head_dim is None else shape | dict(head_dim=head_dim)


def rope(theta, rope_type="default", **more):
    return dict(rope_parameters=dict(rope_theta=theta, rope_type=rope_type, **more))


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
    }


def query_size(config):
    """rms of queries and keys: tiny before a QK norm, so that its eps matters; less where rope makes them longer."""
    if "qwen3" in config.model_type:
        return 3 * math.sqrt(config.rms_norm_eps)
    return QUERY / 1.2 if config.rope_parameters["rope_type"] in ("yarn", "longrope") else QUERY


def scale_of(name, shape, config):
    """The deviation from which a tensor is drawn, by what it yields."""
    hidden, fan_in = config.hidden_size, shape[-1]
    unit = 1 / (math.sqrt(hidden) * NORM)  # turns a normed row into values of rms 1
    embed = EMBED * math.sqrt(config.rms_norm_eps)
    for part, scale in [
        ("embed_tokens", embed), ("lm_head", LOGIT * unit),
        ("q_proj.weight", query_size(config) * unit), ("k_proj.weight", query_size(config) * unit),
        ("v_proj.weight", unit), ("q_proj.bias", 0.5), ("k_proj.bias", 0.5), ("v_proj.bias", 0.3),
        ("o_proj", 3 * embed / math.sqrt(fan_in)), ("mlp.gate.weight", 2 * unit),
        ("gate_up_proj", 1.5 * unit), ("gate_proj", 1.5 * unit), ("up_proj", 1.5 * unit),
        ("experts.down_proj", 6 * embed / math.sqrt(fan_in)), ("down_proj", 2 * embed / math.sqrt(fan_in)),
    ]:
        if part in name:
            return scale
    raise KeyError(name)


def norm_range(name, config):
    """Lower and upper end of a norm weight."""
    if "q_norm" in name or "k_norm" in name:
        return 0.5 * QUERY, 1.5 * QUERY
    if name == "model.norm.weight" and config.tie_word_embeddings:  # the head is as small as the embedding
        size = LOGIT / (EMBED * math.sqrt(config.rms_norm_eps * config.hidden_size) * NORM)
        return 0.5 * size, 1.5 * size
    return 0.5, 1.5


def fill(model, config):
    """Draws every weight from a seed of its name, rounded to what bf16 can hold."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if "norm" in name:
                low, high = norm_range(name, config)
                tensor.uniform_(low, high, generator=draw)
            else:
                tensor.normal_(0, scale_of(name, tensor.shape, config), generator=draw)
            tensor.copy_(tensor.bfloat16().float())
