"""A plain decoder written from the formulas, without transformers, and the faults planted in it.

It reads a checkpoint folder as any loader would. In float64 it shows how far float32 is from the truth; with one of
FAULTS planted it shows that the goldens notice that fault.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file


def load_weights(folder, dtype):
    weights = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    return weights


def load_settings(folder, max_len):
    """Everything in which a loader can be wrong, by name, so that a fault is one assignment."""
    c = json.loads((Path(folder) / "config.json").read_text())
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    query, kv, layers = c["num_attention_heads"], c["num_key_value_heads"], c["num_hidden_layers"]
    kinds = c.get("layer_types") or ["full_attention"] * layers
    sparse, dense = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    experts = c.get("num_experts") or c.get("num_local_experts") or 0
    s = SimpleNamespace(
        layers=layers, head_dim=head_dim, query=query, kv=kv, scale=head_dim**-0.5, max_len=max_len,
        max_position=c["max_position_embeddings"], hidden=c["hidden_size"],
        eps=c["rms_norm_eps"], qk_eps=c["rms_norm_eps"], final_eps=c["rms_norm_eps"],
        rope=dict(c["rope_parameters"]), rope_style="halves", query_shift=0, bias=True, angle=torch.float64,
        kv_head=[h // (query // kv) for h in range(query)],
        windows=[c["sliding_window"] if kind == "sliding_attention" else None for kind in kinds],
        qk_norm="before" if "qwen3" in c["model_type"] else "none", swap=False,
        moe=[experts > 0 and i not in dense and (i + 1) % sparse == 0 for i in range(layers)],
        experts=experts, top_k=c.get("num_experts_per_tok"), renormalise=c.get("norm_topk_prob"),
        seen=SimpleNamespace(logit_std=[], router_gap=[]),
    )
    return s


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


# Rope: inverse frequencies and a factor on cos and sin, resolved once for the maximum length.

def inverse_frequencies(s):
    """(frequencies, attention factor) in float64."""
    rope, kind, d = s.rope, s.rope["rope_type"], s.head_dim
    theta, steps = rope["rope_theta"], torch.arange(0, d, 2, dtype=torch.float64) / d
    if kind == "dynamic":
        length = max(s.max_len, s.max_position)
        theta *= (rope["factor"] * length / s.max_position - (rope["factor"] - 1)) ** (d / (d - 2))
    plain = theta**-steps
    if kind in ("default", "dynamic"):
        return plain, 1.0
    if kind == "linear":
        return plain / rope["factor"], 1.0
    return {"llama3": llama3, "yarn": yarn, "longrope": longrope}[kind](s, plain)


def llama3(s, plain):
    low, high, old = (s.rope[k] for k in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    turns = old * plain / (2 * math.pi)  # full turns within the original length
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / s.rope["factor"] + smooth * plain, 1.0


def yarn(s, plain):
    old, theta, factor = s.rope["original_max_position_embeddings"], s.rope["rope_theta"], s.rope["factor"]

    def dim_of(turns):
        return s.head_dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dim_of(s.rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dim_of(s.rope.get("beta_slow") or 1)), s.head_dim - 1)
    ramp = ((torch.arange(s.head_dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    attention = s.rope.get("attention_factor") or 0.1 * math.log(factor) + 1
    return plain / factor * ramp + plain * (1 - ramp), attention


def longrope(s, plain):
    old = s.rope["original_max_position_embeddings"]
    factors = s.rope["long_factor" if s.max_len > old else "short_factor"]
    ratio = s.rope.get("factor") or s.max_position / old
    attention = s.rope.get("attention_factor") or math.sqrt(1 + math.log(ratio) / math.log(old))
    return plain / torch.tensor(factors, dtype=torch.float64), attention


def rotate(s, x, positions):
    """x[T, heads, d] turned by its positions."""
    frequencies, factor = inverse_frequencies(s)
    angle = (positions.to(s.angle)[:, None] * frequencies.to(s.angle))[:, None, :].double()
    cos, sin = (angle.cos() * factor).to(x.dtype), (angle.sin() * factor).to(x.dtype)
    if s.rope_style == "pairs":
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def visible(rows, window):
    """mask[query, key]: causal, and of a window of w the query's own position and the w-1 before it."""
    q, k = torch.arange(rows)[:, None], torch.arange(rows)[None]
    mask = k <= q
    return mask if window is None else mask & (k > q - window)


def project(s, w, prefix, x, name, heads):
    bias = w.get(f"{prefix}.{name}_proj.bias") if s.bias else None
    y = torch.nn.functional.linear(x, w[f"{prefix}.{name}_proj.weight"], bias)
    return y.view(len(x), heads, -1)


def attention(s, w, i, x):
    prefix, rows = f"model.layers.{i}.self_attn", len(x)
    q, k, v = (project(s, w, prefix, x, name, n) for name, n in [("q", s.query), ("k", s.kv), ("v", s.kv)])
    position = torch.arange(rows)

    def qk_norm(q, k):
        return norm(q, w[prefix + ".q_norm.weight"], s.qk_eps), norm(k, w[prefix + ".k_norm.weight"], s.qk_eps)

    if s.qk_norm == "before":
        q, k = qk_norm(q, k)
    q, k = rotate(s, q, position + s.query_shift), rotate(s, k, position)
    if s.qk_norm == "after":
        q, k = qk_norm(q, k)
    mask, out = visible(rows, s.windows[i]), []
    for h, g in enumerate(s.kv_head):
        logits = q[:, h] @ k[:, g].T * s.scale
        s.seen.logit_std.append(logits[mask].std().item() if rows > 1 else 0.0)
        out.append(logits.masked_fill(~mask, -math.inf).softmax(-1) @ v[:, g])
    return torch.cat(out, -1) @ w[prefix + ".o_proj.weight"].T


def dense(s, w, prefix, x):
    gate, up = (x @ w[f"{prefix}.{name}_proj.weight"].T for name in ("gate", "up"))
    if s.swap:
        gate, up = up, gate
    return (torch.nn.functional.silu(gate) * up) @ w[prefix + ".down_proj.weight"].T


def moe(s, w, prefix, x):
    probs = (x @ w[prefix + ".gate.weight"].T).softmax(-1)
    top, ids = probs.topk(s.top_k + 1, -1)
    s.seen.router_gap.append((top[:, -2].log() - top[:, -1].log()).min().item())
    top, ids = top[:, :-1], ids[:, :-1]
    if s.renormalise:
        top = top / top.sum(-1, keepdim=True)
    share = torch.zeros_like(probs).scatter(-1, ids, top)
    return sum(share[:, e, None] * dense(s, w, f"{prefix}.experts.{e}", x) for e in range(s.experts))


def log_probs(s, w, tokens):
    """log p(next token) after every position: [T, V]."""
    x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(s.layers):
        layer = f"model.layers.{i}"
        x = x + attention(s, w, i, norm(x, w[layer + ".input_layernorm.weight"], s.eps))
        mlp = moe if s.moe[i] else dense
        x = x + mlp(s, w, layer + ".mlp", norm(x, w[layer + ".post_attention_layernorm.weight"], s.eps))
    x = norm(x, w["model.norm.weight"], s.final_eps)
    return (x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T).log_softmax(-1)


# Faults: each returns changed settings, or nothing where the case cannot have it.

def change(**new):
    return lambda s: SimpleNamespace(**vars(s) | new)


def change_rope(**new):
    return lambda s: SimpleNamespace(**vars(s) | dict(rope=s.rope | new))


def only_if(test, fault):
    return lambda s: fault(s) if test(s) else None


def scale_field(factor, *names):
    return lambda s: SimpleNamespace(**vars(s) | {name: getattr(s, name) * factor for name in names})


def shift_window(by):
    return lambda s: SimpleNamespace(**vars(s) | dict(windows=[w and w + by for w in s.windows]))


def no_rope_scaling(s):
    return change_rope(rope_type="default")(s)


def has_qk_norm(s):
    return s.qk_norm != "none"


def windowed(s):
    return any(s.windows)


def kind_is(*kinds):
    return lambda s: s.rope["rope_type"] in kinds


FAULTS = {
    "rope style": change(rope_style="pairs"),
    "theta x0.5": lambda s: change_rope(rope_theta=s.rope["rope_theta"] * 0.5)(s),
    "query position +1": change(query_shift=1),
    "query position -1": change(query_shift=-1),
    "eps x10": scale_field(10, "eps", "qk_eps", "final_eps"),
    "eps x10, layer norms": scale_field(10, "eps"),
    "eps x10, QK norm": only_if(has_qk_norm, scale_field(10, "qk_eps")),
    "eps x10, final norm": scale_field(10, "final_eps"),
    "no QK norm": only_if(has_qk_norm, change(qk_norm="none")),
    "QK norm after rope": only_if(has_qk_norm, change(qk_norm="after")),
    "window +1": only_if(windowed, shift_window(1)),
    "window -1": only_if(windowed, shift_window(-1)),
    "no window": only_if(windowed, lambda s: change(windows=[None] * s.layers)(s)),
    "window in every layer": only_if(windowed, lambda s: change(windows=[s.windows[-1]] * s.layers)(s)),
    "gate and up swapped": change(swap=True),
    "no softmax scale": change(scale=1.0),
    "scale of hidden/heads": only_if(lambda s: s.hidden // s.query != s.head_dim,
                                     lambda s: change(scale=(s.hidden // s.query) ** -0.5)(s)),
    "kv head = head % kv": only_if(lambda s: 1 < s.kv < s.query,
                                   lambda s: change(kv_head=[h % s.kv for h in range(s.query)])(s)),
    "no QKV bias": only_if(lambda s: s.has_bias, change(bias=False)),
    "no rope scaling": only_if(lambda s: s.rope["rope_type"] != "default", no_rope_scaling),
    "no attention factor": only_if(kind_is("yarn", "longrope"), change_rope(attention_factor=1.0)),
    "short factors": only_if(kind_is("longrope"), change(max_len=1)),
    "resolved at max_position_embeddings": only_if(kind_is("dynamic"), change(max_len=1)),
    "router renormalisation flipped": only_if(lambda s: any(s.moe), lambda s: change(renormalise=not s.renormalise)(s)),
}
