"""A plain decoder written from the formulas, without transformers, and the faults planted in it.

It reads a checkpoint folder as any loader would. In float64 it shows how far float32 is from the truth; with one of
FAULTS planted it shows that the goldens notice that fault.
"""

import math
from types import SimpleNamespace

import torch

import layouts


def load_weights(folder, dtype):
    return layouts.read_weights(folder, dtype)


def load_settings(folder, max_len):
    """Everything in which a loader can be wrong, by name, so that a fault is one assignment."""
    c = layouts.read_config(folder)
    traits = c["traits"]
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    query, kv, layers = c["num_attention_heads"], c["num_key_value_heads"], c["num_hidden_layers"]
    default_kind = "sliding_attention" if c.get("sliding_window") and "layer_types" not in c else "full_attention"
    kinds = c.get("layer_types") or [default_kind] * layers
    window = c.get("sliding_window") or math.inf
    sparse, dense = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    experts = c.get("num_experts") or c.get("num_local_experts") or 0
    ropes = c["rope_parameters"]
    by_kind = "full_attention" in ropes
    log_base = c.get("query_log_base")
    if ropes.get("trained", 0) >= max_len:  # nothing to stretch
        ropes, log_base = ropes | dict(rope_type="default"), None
    return SimpleNamespace(
        layers=layers, head_dim=head_dim, query=query, kv=kv, max_len=max_len,
        scale=(c.get("query_pre_attn_scalar") or head_dim) ** -0.5,
        max_position=c["max_position_embeddings"], hidden=c["hidden_size"],
        original=c.get("original_max_position_embeddings"),
        eps=c["rms_norm_eps"], qk_eps=c["rms_norm_eps"], post_eps=c["rms_norm_eps"], final_eps=c["rms_norm_eps"],
        rope=dict(ropes["full_attention"] if by_kind else ropes),
        window_rope=dict(ropes["sliding_attention"]) if by_kind else None,
        rope_style=traits.get("rope_style", "halves"), query_shift=0, bias=True, angle=torch.float64,
        query_log_base=log_base,
        kv_head=[h // (query // kv) for h in range(query)],
        windows=[window if kind == "sliding_attention" and window < max_len else None for kind in kinds],
        qk_norm=traits.get("qk_norm", "none"), post_norms=True, swap=False,
        norm_offset=traits.get("norm_offset", 0.0), embed_scale=c.get("embed_scale", 1.0),
        activation=traits.get("activation", "silu"),
        attn_cap=c.get("attn_logit_softcapping"), logit_cap=c.get("final_logit_softcapping"),
        moe=[experts > 0 and i not in dense and (i + 1) % sparse == 0 for i in range(layers)],
        experts=experts, top_k=c.get("num_experts_per_tok"),
        renormalise=traits.get("renormalise", c.get("norm_topk_prob")),
        seen=SimpleNamespace(logit_std=[], router_gap=[]),
    )


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


# Rope: inverse frequencies and a factor on cos and sin, resolved once for the maximum length.

def rotary_dim(s, rope):
    return int(s.head_dim * rope.get("partial_rotary_factor", 1.0))


def inverse_frequencies(s, rope):
    """(frequencies, attention factor) in float64."""
    s = SimpleNamespace(**vars(s) | dict(rope=rope))
    kind, d = rope["rope_type"], rotary_dim(s, rope)
    theta, steps = rope["rope_theta"], torch.arange(0, d, 2, dtype=torch.float64) / d
    if kind == "dynamic":
        length = max(s.max_len, s.max_position)
        theta *= (rope["factor"] * length / s.max_position - (rope["factor"] - 1)) ** (d / (d - 2))
    if kind == "stepped":
        doublings = math.ceil(math.log2(s.max_len / rope["trained"]) + 1)
        theta *= max(2**doublings - 1, 1) ** (d / (d - 2))
    plain = theta**-steps
    if kind in ("default", "dynamic", "stepped"):
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
    old = s.rope.get("original_max_position_embeddings") or s.original
    factors = s.rope["long_factor" if s.max_len > old else "short_factor"]
    ratio = s.rope.get("factor") or s.max_position / old
    attention = s.rope.get("attention_factor") or math.sqrt(1 + math.log(ratio) / math.log(old))
    return plain / torch.tensor(factors, dtype=torch.float64), attention


def rotate(s, rope, x, positions):
    """x[T, heads, d] turned by its positions; what lies behind the share that turns passes."""
    frequencies, factor = inverse_frequencies(s, rope)
    angle = (positions.to(s.angle)[:, None] * frequencies.to(s.angle))[:, None, :].double()
    cos, sin = (angle.cos() * factor).to(x.dtype), (angle.sin() * factor).to(x.dtype)
    x, rest = x[..., : 2 * len(frequencies)], x[..., 2 * len(frequencies) :]
    if s.rope_style == "pairs":
        a, b = x[..., ::2], x[..., 1::2]
        return torch.cat((torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2), rest), -1)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def query_growth(s, positions):
    """What a query is multiplied by: the logarithm of its position, beyond the length of training."""
    length = (positions + 1).double()
    return (length.log() / math.log(s.query_log_base)).clamp(min=1.0)[:, None, None]


def capped(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


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
        return (norm(q, w[prefix + ".q_norm.weight"] + s.norm_offset, s.qk_eps),
                norm(k, w[prefix + ".k_norm.weight"] + s.norm_offset, s.qk_eps))

    if s.qk_norm == "before":
        q, k = qk_norm(q, k)
    rope = s.window_rope if s.window_rope and s.windows[i] else s.rope
    q, k = rotate(s, rope, q, position + s.query_shift), rotate(s, rope, k, position)
    if s.qk_norm == "after":
        q, k = qk_norm(q, k)
    if s.query_log_base:
        q = q * query_growth(s, position).to(q.dtype)
    mask, out = visible(rows, s.windows[i]), []
    for h, g in enumerate(s.kv_head):
        logits = capped(q[:, h] @ k[:, g].T * s.scale, s.attn_cap)
        s.seen.logit_std.append(logits[mask].std().item() if rows > 1 else 0.0)
        out.append(logits.masked_fill(~mask, -math.inf).softmax(-1) @ v[:, g])
    return torch.cat(out, -1) @ w[prefix + ".o_proj.weight"].T


def dense(s, w, prefix, x):
    gate, up = (x @ w[f"{prefix}.{name}_proj.weight"].T for name in ("gate", "up"))
    if s.swap:
        gate, up = up, gate
    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    act = silu(gate) if s.activation == "silu" else gelu(gate, approximate="tanh")
    return (act * up) @ w[prefix + ".down_proj.weight"].T


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

    def normed(x, name, eps):
        return norm(x, w[name + ".weight"] + s.norm_offset, eps)

    def post_normed(x, name):
        return normed(x, name, s.post_eps) if s.post_norms and name + ".weight" in w else x

    x = w["model.embed_tokens.weight"][torch.tensor(tokens)] * s.embed_scale
    for i in range(s.layers):
        layer = f"model.layers.{i}"
        mixed = attention(s, w, i, normed(x, layer + ".attn_norm", s.eps))
        x = x + post_normed(mixed, layer + ".attn_post_norm")
        mlp = moe if s.moe[i] else dense
        mixed = mlp(s, w, layer + ".mlp", normed(x, layer + ".mlp_norm", s.eps))
        x = x + post_normed(mixed, layer + ".mlp_post_norm")
    x = normed(x, "model.norm", s.final_eps)
    logits = capped(x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T, s.logit_cap)
    return logits.log_softmax(-1)


# Faults: each returns changed settings, or nothing where the case cannot have it.

def change(**new):
    return lambda s: SimpleNamespace(**vars(s) | new)


def change_rope(**new):
    """In layers of every kind."""
    def changed(s):
        window_rope = s.window_rope and s.window_rope | new
        return SimpleNamespace(**vars(s) | dict(rope=s.rope | new, window_rope=window_rope))
    return changed


def halve_theta(s):
    halved = [rope and rope | dict(rope_theta=rope["rope_theta"] * 0.5) for rope in (s.rope, s.window_rope)]
    return SimpleNamespace(**vars(s) | dict(rope=halved[0], window_rope=halved[1]))


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
    "rope style": lambda s: change(rope_style="pairs" if s.rope_style == "halves" else "halves")(s),
    "theta x0.5": halve_theta,
    "query position +1": change(query_shift=1),
    "query position -1": change(query_shift=-1),
    "eps x10": scale_field(10, "eps", "qk_eps", "post_eps", "final_eps"),
    "eps x10, layer norms": scale_field(10, "eps"),
    "eps x10, QK norm": only_if(has_qk_norm, scale_field(10, "qk_eps")),
    "eps x10, final norm": scale_field(10, "final_eps"),
    "no QK norm": only_if(has_qk_norm, change(qk_norm="none")),
    "QK norm after rope": only_if(has_qk_norm, change(qk_norm="after")),
    "window +1": only_if(windowed, shift_window(1)),
    "window -1": only_if(windowed, shift_window(-1)),
    "no window": only_if(windowed, lambda s: change(windows=[None] * s.layers)(s)),
    "window in every layer": only_if(lambda s: windowed(s) and not all(s.windows),
                                     lambda s: change(windows=[max(filter(None, s.windows))] * s.layers)(s)),
    "gate and up swapped": change(swap=True),
    "eps x10, post norms": only_if(lambda s: s.has_post_norms, scale_field(10, "post_eps")),
    "no post norms": only_if(lambda s: s.has_post_norms, change(post_norms=False)),
    "no norm offset": only_if(lambda s: s.norm_offset, change(norm_offset=0.0)),
    "no embedding scale": only_if(lambda s: s.embed_scale != 1, change(embed_scale=1.0)),
    "silu, not gelu": only_if(lambda s: s.activation == "gelu", change(activation="silu")),
    "no cap on attention": only_if(lambda s: s.attn_cap, change(attn_cap=None)),
    "no cap on logits": only_if(lambda s: s.logit_cap, change(logit_cap=None)),
    "scale of the head size": only_if(lambda s: s.scale != s.head_dim**-0.5,
                                      lambda s: change(scale=s.head_dim**-0.5)(s)),
    "one rope for all layers": only_if(lambda s: s.window_rope, change(window_rope=None)),
    "ropes exchanged": only_if(lambda s: s.window_rope,
                               lambda s: change(rope=s.window_rope, window_rope=s.rope)(s)),
    "all of each head turns": only_if(lambda s: rotary_dim(s, s.rope) < s.head_dim,
                                      lambda s: change_rope(rope_type="default", partial_rotary_factor=1.0)(s)),
    "queries do not grow": only_if(lambda s: s.query_log_base, change(query_log_base=None)),
    "no softmax scale": change(scale=1.0),
    "scale of hidden/heads": only_if(lambda s: s.hidden // s.query not in (s.head_dim, round(s.scale**-2)),
                                     lambda s: change(scale=(s.hidden // s.query) ** -0.5)(s)),
    "kv head = head % kv": only_if(lambda s: 1 < s.kv < s.query,
                                   lambda s: change(kv_head=[h % s.kv for h in range(s.query)])(s)),
    "no QKV bias": only_if(lambda s: s.has_bias, change(bias=False)),
    "no rope scaling": only_if(lambda s: s.rope["rope_type"] != "default", no_rope_scaling),
    "no attention factor": only_if(kind_is("yarn", "longrope"), change_rope(attention_factor=1.0)),
    "short factors": only_if(kind_is("longrope"), change(max_len=1)),
    "resolved at max_position_embeddings": only_if(kind_is("dynamic", "stepped"), change(max_len=1)),
    "router renormalisation flipped": only_if(lambda s: any(s.moe), lambda s: change(renormalise=not s.renormalise)(s)),
}
