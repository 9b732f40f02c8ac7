"""Trains the demo model on the CPU for a given number of minutes and exports the folder.

The learning rate follows elapsed time, so the decay always ends on time; a
checkpoint every few minutes makes a stop cheap (`--out` is resumed if it holds one).
It must never train on a held-out prompt: all text comes from data.Gen(test=False).
"""
import argparse
import json
import pathlib
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
import model as M
import tokenizer as K


def encode(tok, conversations):
    """Token ids and the weight of each: 0, or for an answer and its end mark 1 / root of its length."""
    parts = [("<|im_start|>%s\n" % m["role"], m["content"], m["role"] == "assistant") for c in conversations for m in c]
    flat = iter(tok.encode_batch([s for head, body, _ in parts for s in (head, body + "<|im_end|>")]))
    newline = tok.encode("\n").ids
    out = []
    for c in conversations:
        ids, ans = [], []
        for m in c:
            head, body = next(flat).ids, next(flat).ids
            ids += head + body + newline
            ans += [0] * len(head) + [int(1000 / len(body) ** 0.5) if m["role"] == "assistant" else 0] * len(body) + [0] * len(newline)
        out.append((ids, ans))
    return out


def pack(docs, length):
    """Best fit of documents into rows, longest first; returns ids, document numbers, weights."""
    rows, by_room = [], [[] for _ in range(length + 1)]
    for ids, ans in sorted((d for d in docs if len(d[0]) <= length), key=lambda d: -len(d[0])):
        room = next((n for n in range(len(ids), length + 1) if by_room[n]), None)
        row = by_room[room].pop() if room is not None else []
        if room is None:
            rows.append(row)
            room = length
        row.append((ids, ans))
        by_room[room - len(ids)].append(row)
    x = np.zeros((3, len(rows), length), dtype=np.int64)
    x[1] = -1
    for i, ds in enumerate(rows):
        at = 0
        for j, (ids, ans) in enumerate(ds):
            x[0, i, at:at + len(ids)], x[1, i, at:at + len(ids)], x[2, i, at:at + len(ids)] = ids, j, ans
            at += len(ids)
    return x


def batches(tok, seed, start, tokens, long_every):
    """Endless batches. Chunk n depends on (seed, n) only; every `long_every`th batch is of long chats."""
    chunk = start
    while True:
        g = data.Gen("%s/%d" % (seed, chunk))
        short = pack(encode(tok, [g.short() for _ in range(4000)]), 256)
        long = pack(encode(tok, [g.long() for _ in range(170)] + [g.short() for _ in range(100)]), 512)
        out = []
        for x in (short, long):
            x = x[:, np.array(g.r.sample(range(x.shape[1]), x.shape[1]))]
            n = tokens // x.shape[2]
            out.append([torch.from_numpy(x[:, i:i + n]) for i in range(0, x.shape[1] - n + 1, n)])
        chunk += 1
        for i, b in enumerate(out[0]):
            if i % long_every == 0 and out[1]:
                yield chunk, out[1].pop()
            yield chunk, b


class Muon:
    """Momentum, then five Newton-Schulz steps; matrices of one shape go through together.

    Each worker orthogonalizes its share of the matrices; one all-reduce brings them together.
    """

    def __init__(self, params, rank, world, momentum=0.95, decay=0.05):
        self.groups = {}
        for p in params:
            self.groups.setdefault(tuple(sorted(p.shape)), []).append(p)
        self.buf = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}
        self.rank, self.world, self.momentum, self.decay = rank, world, momentum, decay

    @torch.no_grad()
    def step(self, lr):
        updates = {}
        for shape, ps in self.groups.items():
            g = torch.stack([p.grad if p.shape[0] == shape[0] else p.grad.T for p in ps])
            self.buf[shape].mul_(self.momentum).add_(g)
            mine = slice(self.rank, None, self.world)
            updates[shape] = torch.zeros_like(g)
            updates[shape][mine] = orthogonal(g[mine] + self.momentum * self.buf[shape][mine])
        share(list(updates.values()), 1.0)
        for shape, ps in self.groups.items():
            for p, u in zip(ps, updates[shape]):
                u = u if p.shape[0] == shape[0] else u.T
                p.mul_(1 - lr * self.decay).add_(u, alpha=-lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def share(tensors, scale):
    """Sum tensors over the workers, in place, in one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for t, f in zip(tensors, flat.mul_(scale).split([t.numel() for t in tensors])):
        t.copy_(f.view_as(t))


def orthogonal(x):
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def rate(frac, decay_from):
    """3% warm-up, constant, then linear to zero at the end of the given time."""
    return min(frac / 0.03, 1.0, max(0.0, (1 - frac) / (1 - decay_from)))


def loss_of(net, batch):
    """Cross entropy by weight, so that a sum of two digits is not drowned by a long count."""
    ids, docs, weight = batch
    weight = torch.roll(weight, -1, 1)
    weight[:, -1] = 0
    where = weight.flatten().nonzero().squeeze(1)
    torch._dynamo.mark_dynamic(where, 0)
    logits = net(ids, M.block_mask(docs), where)
    each = F.cross_entropy(logits, torch.roll(ids, -1, 1).flatten()[where], reduction="none")
    w = weight.flatten()[where].float()
    return (each * w).sum() / w.sum()


def settings():
    a = argparse.ArgumentParser()
    a.add_argument("--minutes", type=float, default=55)
    a.add_argument("--out", default="/tmp/pagoda-demo")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--tokens", type=int, default=6144, help="tokens a step")
    a.add_argument("--muon-lr", type=float, default=0.02)
    a.add_argument("--adam-lr", type=float, default=1.5e-3)
    a.add_argument("--decay-from", type=float, default=0.6)
    a.add_argument("--save-every", type=float, default=4, help="minutes")
    a.add_argument("--workers", type=int, default=2, help="one process and one thread each")
    a.add_argument("--no-compile", action="store_true")
    return a.parse_args()


def prepare(a, rank):
    """Model, optimizers and state, fresh or from the checkpoint."""
    raw = M.Model(M.CONFIG)
    muon = Muon([p for n, p in raw.named_parameters() if p.ndim == 2 and "embed" not in n], rank, a.workers)
    rest = [p for n, p in raw.named_parameters() if p.ndim == 1 or "embed" in n]
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.05)
    s = {"step": 0, "tokens": 0, "elapsed": 0.0, "chunk": 0}
    file = pathlib.Path(a.out) / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file)
        s = saved["state"]
        raw.load_state_dict(saved["model"]), adam.load_state_dict(saved["adam"])
        muon.buf = saved["muon"]
    return raw, muon, adam, s


def work(rank, a, began):
    """One worker: its own data stream and one thread; gradients are averaged every step."""
    out = pathlib.Path(a.out)
    dist.init_process_group("gloo", init_method="file://%s/rendezvous" % out, rank=rank, world_size=a.workers)
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    tok = Tokenizer.from_file(str(out / "model/tokenizer.json"))
    raw, muon, adam, s = prepare(a, rank)
    net = raw if a.no_compile else torch.compile(raw, dynamic=False)
    before, last_save = s["elapsed"], s["elapsed"]
    for s["chunk"], batch in batches(tok, "%d/%d" % (a.seed, rank), s["chunk"], a.tokens // a.workers, 6):
        clock = torch.tensor([time.time() - began if rank == 0 else 0.0], dtype=torch.float64)
        dist.all_reduce(clock)
        s["elapsed"] = before + clock.item() / 60
        if s["elapsed"] >= a.minutes:
            break
        loss = step(net, raw, muon, adam, batch, a, rate(s["elapsed"] / a.minutes, a.decay_from))
        s["step"] += 1
        s["tokens"] += int((batch[1] >= 0).sum()) * a.workers
        if rank == 0 and (s["step"] % 20 == 0 or s["step"] < 6):
            print("step %d  min %.2f  loss %.4f  tok/s %.0f" % (s["step"], s["elapsed"], loss, s["tokens"] / s["elapsed"] / 60), flush=True)
        if rank == 0 and s["elapsed"] - last_save > a.save_every:
            save(raw, muon, adam, s, out)
            last_save = s["elapsed"]
    if rank == 0:
        save(raw, muon, adam, s, out)
        M.export(raw, M.CONFIG, out / "model", tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>"))
        run = {k: v for k, v in vars(a).items() if k != "out"}
        run.update(steps=s["step"], trained_tokens=s["tokens"], trained_minutes=round(s["elapsed"], 1))
        (out / "run.json").write_text(json.dumps(run, indent=2) + "\n")
    dist.barrier()


def step(net, raw, muon, adam, batch, a, lr):
    loss = loss_of(net, batch)
    loss.backward()
    share([p.grad for p in raw.parameters()], 1 / a.workers)
    muon.step(a.muon_lr * lr)
    for group in adam.param_groups:
        group["lr"] = a.adam_lr * lr
    adam.step()
    raw.zero_grad(set_to_none=True)
    return loss.item()


def save(raw, muon, adam, state, out):
    part = out / "checkpoint.tmp"
    torch.save({"model": raw.state_dict(), "muon": muon.buf, "adam": adam.state_dict(), "state": state}, part)
    part.rename(out / "checkpoint.pt")


def main():
    began, a = time.time(), settings()
    out = pathlib.Path(a.out)
    if not (out / "model/tokenizer.json").exists():
        K.save(K.train(M.CONFIG["vocab_size"], 7, 20000), out / "model", M.CONFIG["max_position_embeddings"])
    (out / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (a, began), a.workers)


if __name__ == "__main__":
    main()
