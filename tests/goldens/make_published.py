"""Makes the goldens of families that transformers lacks, from published decoders run here.

Qwen 1 and ChatGLM3 by llama.cpp (f32 weights and cache; its own converter reads the checkpoint), and the first Qwen
beyond the length of its training by the decoder that its authors published, since llama.cpp neither stretches its
base nor lets its queries grow. Run by hand, as make.py; README.md says where both come from.

    LLAMA_CPP=<llama.cpp> LLAMA_CPP_LIB_PATH=<its libraries> QWEN=<the authors' files> python make_published.py [case ...]
"""

import ctypes
import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

import layouts
from cases import MAX_LEN, build_published_cases, fill, published_shapes
from make import HERE, make_all, measure

BY_ITS_AUTHORS = ["qwen_long"]


def write_checkpoint(folder, config):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: torch.empty(shape) for name, shape in published_shapes(config).items()}
    words = SimpleNamespace(**layouts.read_config(folder))
    fill(((layouts.rename(name, words.model_type), tensor) for name, tensor in tensors.items()), words)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata=dict(format="pt"))
    generation = dict(do_sample=True, eos_token_id=config.get("eos_token_id", 2), top_k=20, top_p=0.8, temperature=0.7)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")


def llama_cpp(folder, config):
    """A function from tokens to log-probabilities, by llama.cpp."""
    source = Path(os.environ["LLAMA_CPP"])
    sys.path[:0] = [str(source), str(source / "gguf-py"), str(source.parents[1])]
    conversion, gguf = importlib.import_module("conversion"), importlib.import_module("gguf")
    native = importlib.import_module("llama_cpp.llama_cpp")
    architecture = config["architectures"][0]
    converter = conversion.get_model_class(architecture)
    vocab = config.get("padded_vocab_size", config["vocab_size"])

    def no_vocabulary(self):
        self._set_vocab_none()
        self.gguf_writer.add_vocab_size(vocab)
        if "layer_norm_epsilon" in config:  # written by the converter as that of another norm
            self.gguf_writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])

    converter.set_vocab = no_vocabulary
    file = Path(tempfile.mkdtemp()) / "model.gguf"
    with torch.inference_mode():
        converter(folder, gguf.LlamaFileType.ALL_F32, file, eager=True).write()
    native.llama_backend_init()
    model = native.llama_model_load_from_file(str(file).encode(), native.llama_model_default_params())
    assert model, file

    def run(tokens):
        params = native.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = MAX_LEN
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = 0  # GGML_TYPE_F32
        params.flash_attn_type = 0  # softmax in f32, whole rows
        context = native.llama_init_from_model(model, params)
        batch = native.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        assert native.llama_decode(context, batch) == 0
        rows = native.llama_get_logits(context)
        size = len(tokens) * vocab
        values = ctypes.cast(rows, ctypes.POINTER(ctypes.c_float * size)).contents
        logits = torch.frombuffer(bytearray(values), dtype=torch.float32).view(len(tokens), vocab)
        native.llama_batch_free(batch)
        native.llama_free(context)
        return logits.log_softmax(-1)

    return run


def authors_qwen(folder, config):
    """A function from tokens to log-probabilities, by the decoder that the authors of Qwen published."""
    code = Path(os.environ["QWEN"]).resolve()
    sys.path.insert(0, str(code.parent))
    decoder = importlib.import_module(f"{code.name}.modeling_qwen")
    settings = importlib.import_module(f"{code.name}.configuration_qwen").QWenConfig(
        **config | dict(fp32=True, use_flash_attn=False))
    # Newer versions of transformers lack this; without a mask it gave one nothing a layer.
    decoder.QWenModel.get_head_mask = lambda self, mask, layers: [None] * layers
    model = decoder.QWenLMHeadModel(settings).float().eval()
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    assert not model.load_state_dict(weights, strict=False).missing_keys
    # The base is resolved once, at MAX_LEN, where the authors follow the length of the input.
    by_length = model.transformer.get_ntk_alpha
    model.transformer.get_ntk_alpha = lambda length: by_length(MAX_LEN)

    @torch.no_grad()
    def run(tokens):
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)

    return run


def make_case(name, config):
    folder = HERE / name
    write_checkpoint(folder, config)
    engine = authors_qwen if name in BY_ITS_AUTHORS else llama_cpp
    return measure(folder, engine(folder, config), config["vocab_size"])


if __name__ == "__main__":
    make_all(build_published_cases(), make_case)
