"""Makes the quantized golden checkpoints: codes and scales in the layouts that published files have.

Run by hand, as make.py, whose weights and checks these are: a checkpoint of cases.py is drawn, its projections are
quantized and packed here, and what transformers computes from the weights that the codes stand for is the golden. What
they stand for is not ours to say alone: before anything is written, the files are read back and widened by the
packages that define each format, and every number must be the same (README.md says which).

    AUTOAWQ=<AutoAWQ's source> AUTOGPTQ=<AutoGPTQ's> python make_quantized.py [case ...]
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config, LlamaConfig, Qwen2Config
from transformers import Qwen3MoeConfig

import make
from cases import LLAMA, QWEN, heads, rope

HERE = Path(__file__).parent
PLAIN = dict(num_hidden_layers=2)
LLAMA_SHAPE = LlamaConfig(**LLAMA | PLAIN | dict(intermediate_size=136), **heads(80, 2, 2, 48), **rope(10000.0))
WORD_SHAPE = LlamaConfig(**LLAMA | PLAIN | dict(intermediate_size=160), **heads(96, 2, 2), **rope(10000.0))
QWEN_SHAPE = Qwen2Config(**QWEN | PLAIN | dict(intermediate_size=128), **heads(96, 3, 1), tie_word_embeddings=True,
                         **rope(1000000.0))
MOE_SHAPE = Qwen3MoeConfig(**QWEN | dict(moe_intermediate_size=48), **heads(72, 4, 2, 48), **rope(1000000.0),
                           num_experts=5, num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=True)
E4M3_MAX = 448.0
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word is this one of its eight columns


def rows_scheme(dynamic):
    return dict(dynamic=dynamic, num_bits=8, observer=None if dynamic else "minmax", symmetric=True, type="float",
                strategy="token" if dynamic else "tensor")


def compressed_tensors(strategy, block=None, dynamic=True):
    """quantization_config as llm-compressor writes it."""
    weights = dict(actorder=None, block_structure=block, dynamic=False, group_size=None, num_bits=8,
                   observer="minmax", observer_kwargs={}, strategy=strategy, symmetric=True, type="float")
    group = dict(input_activations=rows_scheme(dynamic), output_activations=None, targets=["Linear"], weights=weights)
    return dict(config_groups=dict(group_0=group), format="float-quantized", ignore=["lm_head"], kv_cache_scheme=None,
                quant_method="compressed-tensors", quantization_status="compressed")


FP8 = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[24, 12],
           modules_to_not_convert=["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"])
AWQ = dict(bits=4, group_size=32, modules_to_not_convert=None, quant_method="awq", version="gemm", zero_point=True)
GPTQ = dict(bits=4, damp_percent=0.1, desc_act=True, group_size=64, model_file_base_name=None, model_name_or_path=None,
            quant_method="gptq", static_groups=False, sym=False, true_sequential=True)
# Each case: the shape, and what its config.json says.
CASES = {
    "fp8_channel": (LLAMA_SHAPE, compressed_tensors("channel")),
    "fp8_tensor": (QWEN_SHAPE, compressed_tensors("tensor", dynamic=False)),
    "fp8_block": (LLAMA_SHAPE, compressed_tensors("block", [64, 48])),
    "fp8_scale_inv": (MOE_SHAPE, FP8),
    "awq": (QWEN_SHAPE, AWQ),
    "gptq": (WORD_SHAPE, GPTQ),
    "gptq_v2": (WORD_SHAPE, GPTQ | dict(desc_act=False, group_size=32, checkpoint_format="gptq_v2")),
}


# Quantizing: what a module's weight [N, K] becomes, and the weight that it stands for.

def blocks_of(config, shape):
    """Rows and columns that share a scale."""
    if config["quant_method"] == "fp8":
        return config["weight_block_size"]
    weights = config["config_groups"]["group_0"]["weights"]
    return {"tensor": list(shape), "channel": [1, shape[1]], "block": weights["block_structure"]}[weights["strategy"]]


def spread(grid, block, shape):
    """A grid of blocks, an entry for each element."""
    wide = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]


def fp8(config, weight, draw):
    block = blocks_of(config, weight.shape)
    counts = [-(-size // step) for size, step in zip(weight.shape, block)]
    largest = torch.tensor([[weight[r * block[0] : (r + 1) * block[0], c * block[1] : (c + 1) * block[1]].abs().max()
                             for c in range(counts[1])] for r in range(counts[0])])
    is_compressed = config["quant_method"] == "compressed-tensors"
    # Scales of the first are stored in the type of the model, of the second in float32.
    scale = (largest / E4M3_MAX).to(torch.bfloat16 if is_compressed else torch.float32)
    wide = spread(scale.float(), block, weight.shape)
    codes = (weight / wide).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    parts = {"weight": codes}
    if not is_compressed:
        parts["weight_scale_inv"] = scale
    else:
        parts["weight_scale"] = scale.reshape(1) if counts == [1, 1] else scale
        if not config["config_groups"]["group_0"]["input_activations"]["dynamic"]:
            parts["input_scale"] = torch.tensor([0.01], dtype=torch.bfloat16)
    return parts, codes.float() * wide


def int4_codes(config, weight, draw):
    """(codes[N, K], zeros[G, N], scales[G, N], the group of each column)."""
    size, cols = config["group_size"], weight.shape[1]
    groups = torch.arange(cols) // size
    if config.get("desc_act"):
        groups = groups[torch.randperm(cols, generator=draw)]
    scales, zeros, codes = [], [], torch.empty(weight.shape, dtype=torch.int32)
    for group in range(-(-cols // size)):
        part = weight[:, groups == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scale = ((high - low) / 15).half()
        zero = (-low / scale.float()).round().clamp(1, 15)  # the first format stores one less
        codes[:, groups == group] = (part / scale.float()[:, None] + zero[:, None]).round().clamp(0, 15).int()
        scales.append(scale)
        zeros.append(zero.int())
    return codes, torch.stack(zeros), torch.stack(scales), groups


def packed(nibbles):
    """Words of the eight codes in the last dimension, the first of them lowest."""
    words = sum(nibbles[..., i].long() << (4 * i) for i in range(8))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def int4(config, weight, draw):
    codes, zeros, scales, groups = int4_codes(config, weight, draw)
    rows, cols = weight.shape
    stands_for = (codes.float() - zeros.float()[groups].T) * scales.float()[groups].T
    if config["quant_method"] == "awq":
        qweight = packed(codes.T.reshape(cols, rows // 8, 8)[..., AWQ_ORDER])
        qzeros = packed(zeros.reshape(-1, rows // 8, 8)[..., AWQ_ORDER])
        return dict(qweight=qweight, qzeros=qzeros, scales=scales), stands_for
    qweight = packed(codes.T.reshape(cols // 8, 8, rows).transpose(1, 2))
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    qzeros = packed((zeros - less).reshape(-1, rows // 8, 8))
    return dict(qweight=qweight, qzeros=qzeros, scales=scales, g_idx=groups.int()), stands_for


def is_quantized(name):
    return name.endswith("_proj.weight")


def write_checkpoint(folder, shape, config):
    """Writes the quantized folder, and returns another with the weights that it stands for."""
    make.write_checkpoint(folder, shape)
    plain = Path(tempfile.mkdtemp())
    shutil.copytree(folder, plain, dirs_exist_ok=True)
    draw = torch.Generator().manual_seed(4)
    quantize = int4 if config.get("bits") == 4 else fp8
    dtype = torch.float16 if quantize is int4 else torch.bfloat16
    stored, wide = {}, {}
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        if not is_quantized(name):
            stored[name] = tensor.to(dtype)
            wide[name] = stored[name].float()
            continue
        parts, wide[name] = quantize(config, tensor.float(), draw)
        stored |= {name.removesuffix("weight") + end: part.contiguous() for end, part in parts.items()}
    save_file(stored, folder / "model.safetensors", metadata=dict(format="pt"))
    save_file(wide, plain / "model.safetensors", metadata=dict(format="pt"))
    fields = json.loads((folder / "config.json").read_text())
    fields |= dict(dtype=str(dtype).removeprefix("torch."), quantization_config=config)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    return plain


# What the packages that define a format make of the files.

def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_compressed_tensors(config, parts):
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    return dequantize(parts["weight"], parts["weight_scale"].float(), args=scheme.weights)


def by_transformers(config, parts):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    return Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"])


def by_autoawq(config, parts):
    packing = module_of(Path(os.environ["AUTOAWQ"]) / "awq/utils/packing_utils.py")
    wide = packing.dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"].float(), 4, config["group_size"])
    return wide.T


def by_autogptq(config, parts):
    """The layer's answer to one-hot rows. The second format's zeros are made the first's, as GPTQModel does."""
    linear = module_of(Path(os.environ["AUTOGPTQ"]) / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    rows, cols = parts["scales"].shape[1], parts["g_idx"].shape[0]
    layer = linear(4, config["group_size"], cols, rows, bias=False, weight_dtype=torch.float32)
    layer.qweight, layer.scales, layer.g_idx = parts["qweight"], parts["scales"].float(), parts["g_idx"]
    layer.qzeros = parts["qzeros"] - (0x11111111 if config.get("checkpoint_format") == "gptq_v2" else 0)
    return layer(torch.eye(cols)).T


PACKAGES = {"compressed-tensors": by_compressed_tensors, "fp8": by_transformers, "awq": by_autoawq, "gptq": by_autogptq}


def check_weights(folder, plain, config):
    """Every quantized weight as its format's own package widens it."""
    stored, wide = load_file(folder / "model.safetensors"), load_file(plain / "model.safetensors")
    names = [name for name in wide if is_quantized(name)]
    assert names
    for name in names:
        module = name.removesuffix("weight")
        parts = {key.removeprefix(module): part for key, part in stored.items() if key.startswith(module)}
        assert torch.equal(PACKAGES[config["quant_method"]](config, parts).float(), wide[name]), name


def check_model(folder, plain, golden, config):
    """How far transformers' own way from the quantized folder to log-probabilities is, where it has one without a GPU.

    It rounds what compressed-tensors gives to the type of the scales, so there the golden is one of rounded weights.
    """
    kinds = {"compressed-tensors": CompressedTensorsConfig, "fp8": FineGrainedFP8Config}
    if config["quant_method"] not in kinds:
        return None
    settings = kinds[config["quant_method"]](dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=settings).float().eval()
    logprobs = make.run_model(model, golden["tokens"])
    if config["quant_method"] == "fp8":
        return make.largest_move(golden, logprobs)
    rounded = make.load_model(plain)
    for name, weight in rounded.named_parameters():
        weight.data = weight.data.bfloat16().float() if is_quantized(name) else weight.data
    return (logprobs - make.run_model(rounded, golden["tokens"])).abs().max().item()


def make_case(name, shape, config):
    folder = HERE / name
    plain = write_checkpoint(folder, shape, config)
    check_weights(folder, plain, config)
    model = make.load_model(plain)
    row = make.measure(plain, lambda tokens: make.run_model(model, tokens), shape.vocab_size)
    shutil.copy(plain / "golden.json", folder / "golden.json")
    for file in folder.iterdir():
        file.chmod(0o644)
    golden = json.loads((folder / "golden.json").read_text())
    before = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
    make.fill(before.named_parameters(), shape)  # as if nothing had been quantized
    row["moved"] = make.largest_move(golden, make.run_model(before, golden["tokens"]))
    row["transformers"] = check_model(folder, plain, golden, config)
    assert row["moved"] > 0.1 and (row["transformers"] or 0) < 1e-4, row
    shutil.rmtree(plain)
    return row


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        make.report(case, make_case(case, *CASES[case]))
