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
    """The first of these ways that works: heads of a group as they are; their queries as rows of one
    head, where none masks another; keys and values repeated for each head beforehand."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend
    seqs, rows, keys, dim = task["seqs"], task["rows"], task["keys"], task["head_dim"]
    if rows not in (1, keys):
        raise RuntimeError("its causal mask begins at the first key")
    group, is_causal = task["num_q"] // task["num_kv"], rows > 1

    def grouped(number):
        k, v = kv(number)
        return attend(q, k, v, is_causal=is_causal, enable_gqa=True)

    folded_q = q.view(seqs, task["num_kv"], group, dim) if rows == 1 else None

    def folded(number):
        return attend(folded_q, *kv(number))

    repeated_kv = []

    def repeated(number):
        if not repeated_kv:
            repeated_kv.extend(part.repeat_interleave(group, dim=1) for part in kv(number))
        return attend(q, *repeated_kv, is_causal=is_causal)

    def within(way):
        def call(number):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                way(number)
        return call

    why = None
    for way in (grouped, folded if rows == 1 else repeated):
        try:
            within(way)(0)
            torch.cuda.synchronize()
        except Exception as error:
            why = error
            continue
        if way is not grouped:
            peer.note(f"{task['what']}: cuDNN", f"heads {way.__name__}")
        return within(way)
    raise why


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
