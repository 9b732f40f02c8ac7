"""PyTorch's attention at the steps that the suite measures: cuDNN's, and flex_attention.

bf16, keys and values of a sequence one after another (ours lie in scattered blocks of 64 tokens, as an
engine's must). Keys come from different places, so none is cached.
"""

import peer

POOL_BYTES = 12 << 30
# Compiling takes long: these shapes alone.
FLEX_SHAPES = "Llama-3.1-8B"


def inputs(torch, task, pool):
    """Queries, and keys and values of a call's number."""
    seqs, keys, rows, dim = task["seqs"], task["keys"], task["rows"], task["head_dim"]
    q = torch.randn(seqs, task["num_q"], rows, dim, device="cuda", dtype=torch.bfloat16)
    plane = seqs * task["num_kv"] * keys * dim
    if 2 * plane * 2 > pool.numel():
        return q, None
    windows = pool.numel() // (2 * plane)

    def kv(number):
        first = number % windows * 2 * plane
        both = pool[first : first + 2 * plane].view(2, seqs, task["num_kv"], keys, dim)
        return both[0], both[1]

    return q, kv


def cudnn(torch, task, q, kv):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention as attend
    rows, keys = task["rows"], task["keys"]
    mask = None if rows in (1, keys) else causal_lower_right(rows, keys)

    def call(number):
        k, v = kv(number)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            attend(q, k, v, attn_mask=mask, is_causal=rows == keys and rows > 1, enable_gqa=True)

    return call


def flex(torch, task, q, kv):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    rows, keys = task["rows"], task["keys"]
    compiled = torch.compile(flex_attention, dynamic=False)
    causal = lambda batch, head, row, key: row + (keys - rows) >= key
    mask = None if rows == 1 else create_block_mask(causal, None, None, rows, keys, device="cuda")

    def call(number):
        k, v = kv(number)
        compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return call


def work(asked):
    import torch
    pool = torch.empty(POOL_BYTES // 2, dtype=torch.bfloat16, device="cuda")
    for part in pool.split(1 << 28):
        part.normal_()
    for name, make, needed in (("cuDNN", cudnn, 5), ("flex_attention", flex, 60)):
        for task in asked.of("attention"):
            if make is flex and not task["what"].startswith(FLEX_SHAPES):
                continue
            if not asked.keeps_going(needed):
                return False
            what = f"{task['what']}: {name}"
            try:
                q, kv = inputs(torch, task, pool)
                if kv is None:
                    raise RuntimeError("its keys do not fit")
                with torch.inference_mode():
                    samples = peer.seconds_of(make(torch, task, q, kv))
                peer.figure(what, "us", [1e6 * s for s in samples])
            except Exception as error:
                peer.note(what, f"not measured: {type(error).__name__}: {error}")
    return True


if __name__ == "__main__":
    peer.Peer().run("attention of PyTorch", ["torch", "triton"], work)
