"""A Qwen3 decoder in plain torch, for training, and its export as a Hugging Face folder.

It must stay equal to transformers' Qwen3ForCausalLM (evaluate.py checks the answers)
and must never contain anything that knows about the tasks.
"""
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 1536, "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0,
    "tie_word_embeddings": True, "use_cache": True, "use_sliding_window": False, "sliding_window": None,
    "max_window_layers": 4, "initializer_range": 0.02, "torch_dtype": "bfloat16", "bos_token_id": None,
}


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, hd, eps = c["hidden_size"], c["head_dim"], c["rms_norm_eps"]
        self.h, self.kv, self.hd = c["num_attention_heads"], c["num_key_value_heads"], hd
        self.q_proj, self.o_proj = nn.Linear(d, self.h * hd, bias=False), nn.Linear(self.h * hd, d, bias=False)
        self.k_proj, self.v_proj = nn.Linear(d, self.kv * hd, bias=False), nn.Linear(d, self.kv * hd, bias=False)
        self.q_norm, self.k_norm = Norm(hd, eps), Norm(hd, eps)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        g = self.h // self.kv
        q = rope(self.q_norm(self.q_proj(x).view(b, t, self.kv, g, self.hd)).permute(0, 2, 3, 1, 4), cos, sin)
        k = rope(self.k_norm(self.k_proj(x).view(b, t, self.kv, 1, self.hd)).permute(0, 2, 3, 1, 4), cos, sin)
        v = self.v_proj(x).view(b, t, self.kv, self.hd).transpose(1, 2)
        q = (q * self.hd ** -0.5).reshape(b, self.kv, g * t, self.hd)
        s = (q @ k.squeeze(2).transpose(2, 3)).view(b, self.kv, g, t, t) + mask
        y = (s.softmax(-1).view(b, self.kv, g * t, t) @ v).view(b, self.h, t, self.hd)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False), nn.Linear(f, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        half = torch.arange(0, c["head_dim"], 2) / c["head_dim"]
        angle = torch.arange(c["max_position_embeddings"])[:, None] / c["rope_theta"] ** half
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.zeros_(p) if name.endswith(("o_proj.weight", "down_proj.weight")) else nn.init.normal_(p, std=c["initializer_range"])

    def forward(self, ids, mask, where):
        """Logits at the flat positions `where`; mask is 0 or -inf-like, [batch, 1, 1, t, t]."""
        t = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t], mask)
        return self.norm(x.flatten(0, 1)[where]) @ self.embed_tokens.weight.T


def block_mask(docs):
    """A token sees earlier tokens of its own document only."""
    t = docs.shape[1]
    ok = (docs[:, :, None] == docs[:, None, :]) & torch.ones(t, t, dtype=torch.bool).tril()
    return torch.where(ok, 0.0, -1e9)[:, None, None]


@torch.no_grad()
def greedy(model, ids, stop, limit):
    out = []
    while len(out) < limit:
        x = torch.tensor([ids + out])
        n = model(x, block_mask(torch.zeros_like(x)), torch.tensor([x.shape[1] - 1])).argmax().item()
        if n in stop:
            break
        out.append(n)
    return out


def export(model, config, folder, im_end, eot):
    """Write config, generation config and bf16 weights under Hugging Face's tensor names."""
    folder = pathlib.Path(folder)
    config = dict(config, eos_token_id=im_end, pad_token_id=eot)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": None, "do_sample": False, "eos_token_id": [im_end, eot], "pad_token_id": eot}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {"model." + k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
