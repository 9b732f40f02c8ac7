"""Peak memory of the real process: weights + KV cache + 200 MB, from numbers of the configuration."""

import concurrent.futures
import json
import os
import struct

import httpx
import pytest

from conftest import sdk
from server import Server
from test_lifecycle import words_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "vocab_size": 4096,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "eos_token_id": 2,
}
KV_BYTES = 9 << 20
OVERHEAD_BYTES = 200_000_000
PROMPTS, PROMPT_TOKENS = 3, 200


def shapes():
    """Name and shape of every tensor, as in a checkpoint of transformers."""
    hidden, inner, vocab = (CONFIG[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = hidden * CONFIG["num_key_value_heads"] // CONFIG["num_attention_heads"]
    yield "model.embed_tokens.weight", [vocab, hidden]
    yield "lm_head.weight", [vocab, hidden]
    yield "model.norm.weight", [hidden]
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden], "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
            "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
        }.items():
            yield f"{at}{name}.weight", shape


def num_elements(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


WEIGHT_BYTES = sum(2 * num_elements(shape) for _, shape in shapes())


def write_weights(path):
    """Random bf16 of magnitude 2⁻⁵ to 2⁻⁴: sign and fraction are random, the exponent is fixed."""
    fraction = bytes(byte & 0x7F for byte in range(256))
    sign = bytes(byte & 0x80 | 0x3D for byte in range(256))
    some = bytearray(2 << 20)
    some[0::2] = os.urandom(1 << 20).translate(fraction)
    some[1::2] = os.urandom(1 << 20).translate(sign)
    header, end = {}, 0
    for name, shape in shapes():
        begin, end = end, end + 2 * num_elements(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(some)):
            file.write(memoryview(some)[: min(len(some), end - start)])


def peak_bytes(process, field="VmHWM:"):
    """The most that was ever resident, mapped pages of the checkpoint among it."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def resident_bytes(process):
    """What is resident now."""
    return peak_bytes(process, "VmRSS:")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("load_format", ["dummy", "safetensors"])
def test_peak_memory_is_weights_cache_and_200_mb(tmp_path, load_format):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if load_format == "safetensors":
        write_weights(tmp_path / "model.safetensors")
        (tmp_path / "tokenizer.json").write_text(words_tokenizer(CONFIG["vocab_size"]))
    flags = ("--model", tmp_path, "--load-format", load_format, "--max-num-seqs", PROMPTS,
             "--kv-cache-memory-bytes", KV_BYTES, "--served-model-name", "m")
    with Server(*flags) as server:
        after_load = peak_bytes(server.process)
        client = sdk(server, timeout=500)

        def ask(number):
            prompt = [(number * 31 + token) % 4000 + 3 for token in range(PROMPT_TOKENS)]
            return client.completions.create(
                model="m", prompt=prompt, max_tokens=4, logprobs=5, extra_body={"ignore_eos": True}
            ).usage

        with concurrent.futures.ThreadPoolExecutor(PROMPTS) as pool:
            usages = list(pool.map(ask, range(PROMPTS)))
        assert all(usage.completion_tokens == 4 for usage in usages)
        peak = peak_bytes(server.process)
    assert WEIGHT_BYTES < after_load <= peak, "the weights are not in memory"
    allowed = WEIGHT_BYTES + KV_BYTES + OVERHEAD_BYTES
    assert peak <= allowed, f"{peak >> 20} MiB, {allowed >> 20} MiB are allowed"


def write_fp8(folder, config):
    """A checkpoint of Phi's layout in e4m3 with a scale for each row."""
    hidden, inner, vocab = (config[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    at = "model.layers.0."
    linears = {at + "self_attn.qkv_proj": [3 * hidden, hidden], at + "self_attn.o_proj": [hidden, hidden],
               at + "mlp.gate_up_proj": [2 * inner, hidden], at + "mlp.down_proj": [hidden, inner]}
    plain = {"model.embed_tokens": [vocab, hidden], "lm_head": [vocab, hidden], "model.norm": [hidden],
             at + "input_layernorm": [hidden], at + "post_attention_layernorm": [hidden]}
    tensors = [(name, "BF16", shape, b"\x80\x3c") for name, shape in plain.items()]
    for name, shape in linears.items():
        tensors += [(name, "F8_E4M3", shape, b"\x31"), (name, "F32", [shape[0], 1], struct.pack("<f", 0.01))]
    header, data = {}, bytearray()
    for name, dtype, shape, element in tensors:
        begin = len(data)
        data += element * num_elements(shape)
        end = "weight_scale" if dtype == "F32" else "weight"
        header[f"{name}.{end}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    quantization = {"quant_method": "compressed-tensors", "format": "float-quantized",
                    "config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}
    config = {**config, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(words_tokenizer(vocab))


def test_what_a_quantized_checkpoint_is_widened_to_is_one_matrix_at_a_time(tmp_path):
    config = {**CONFIG, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_hidden_layers": 1,
              "num_key_value_heads": 16, "intermediate_size": 8192, "vocab_size": 512, "pad_token_id": 0}
    write_fp8(tmp_path, config)
    with Server("--model", tmp_path, "--max-num-seqs", 1, "--kv-cache-memory-bytes", KV_BYTES) as server:
        peak, now = peak_bytes(server.process), resident_bytes(server.process)
    # Gate and up are one tensor and become one matrix: wide in f32, beside the file's bytes.
    elements = 2 * config["intermediate_size"] * config["hidden_size"]
    assert now > 2 * elements, "the weights are in memory"
    assert peak - now <= 5 * elements, f"{(peak - now) >> 20} MiB above what is left"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_many_choices_repeat_is_in_memory_once(stream):
    choices, tokens = 64, 1500
    body = {"prompt": [7] * tokens, "n": choices, "max_tokens": 1, "echo": True, "logprobs": 20,
            "stream": stream}
    with Server() as server:
        small = {**body, "n": 1, "stream": False}
        one = httpx.post(server.url + "/v1/completions", json=small, timeout=300)
        before, received = peak_bytes(server.process), 0
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=300) as answer:
            assert answer.status_code == 200
            for part in answer.iter_raw():
                received += len(part)
        grown = peak_bytes(server.process) - before
    assert received > choices * (len(one.content) - 1000) > 10 << 20
    # Each choice has its own sequence and socket buffers hold some; the rest is one prompt's part.
    assert grown < received / 2, f"{grown >> 20} MiB for an answer of {received >> 20} MiB"
