"""Asks the exported model held-out prompts and writes ../heldout.jsonl and ../REPORT.md.

It must judge the folder that ships (bf16 weights, greedy, through transformers), by
exact match only, and must never ask anything that training could have drawn.
"""
import argparse
import json
import pathlib
import re

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import model as M

WORDED = ["add", "sub", "sort", "repeat", "count", "json"]  # tasks with wordings kept out of training
NOTES = pathlib.Path(__file__).with_name("notes.md")


def ask(messages, expected, task):
    return {"task": task, "messages": messages, "expected": expected}


def single(task, n, seed, unseen=False, name=None):
    """n different prompts with held-out operands (or phrasings); half Chinese, half English."""
    g, out = data.Gen("%s/%s" % (seed, task), test=True, unseen=unseen), {}
    for i in range(n * 30):
        q, a = getattr(g, task)(i % 2 == 1)
        out.setdefault(q, ask([{"role": "user", "content": q}], a, name or task))
        if len(out) == n:
            break
    return list(out.values())


def late(n, seed, turns=10):
    """The last question of a chat of ten turns; the earlier answers are the right ones."""
    g, out = data.Gen("late/%s" % seed, test=True), []
    for _ in range(n):
        c = g.conversation(turns)
        out.append(ask(c[:-1], c[-1]["content"], "turn 10"))
    return out


def by_hand(n, seed):
    """Bare ways of typing, and number words: the weak spots of earlier runs."""
    g, out = data.Gen("hand/%s" % seed, test=True), []
    for i in range(n):
        a, b = g.pair()
        xs = [0]
        while not data.held("sort", sorted(xs)) or len(xs) < 5:
            xs = [g.r.randint(0, 99) for _ in range(5)]
        w = data.word_en
        q, e, t = [("%s plus %s" % (w(a), w(b)), a + b, "number words"), ("%s减%s等于几" % (data.word_zh(a), data.word_zh(b)), a - b, "number words"),
                   ("sort " + " ".join(map(str, xs)), ", ".join(map(str, sorted(xs))), "bare sort"),
                   ("%d plus %d" % (a, b), a + b, "bare sum"), ("what is %d minus %d" % (a, b), a - b, "bare sum")][i % 5]
        out.append(ask([{"role": "user", "content": q}], str(e), t))
    return out


@torch.no_grad()
def answer(net, tok, rows, batch=100):
    """Greedy answers, padded on the left; each may run a few tokens past the expected one, no more."""
    texts = [tok.apply_chat_template(r["messages"], tokenize=False, add_generation_prompt=True) for r in rows]
    room = [len(tok(r["expected"])["input_ids"]) + 4 for r in rows]
    out = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (room[i], len(texts[i])))
    for at in range(0, len(rows), batch):
        part = order[at:at + batch]
        enc = tok([texts[i] for i in part], return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        new = net.generate(**enc, max_new_tokens=max(room[i] for i in part), do_sample=False)[:, enc["input_ids"].shape[1]:]
        for i, ids in zip(part, new):
            out[i] = tok.decode(ids, skip_special_tokens=True)
    return out


def free_chats(net, tok, seed, chats=20, turns=10):
    """Chats in which the model's own answers stay in the context; right answers per turn."""
    g = data.Gen("free/%s" % seed, test=True)
    gold = [[m for m in g.conversation(turns) if m["role"] != "system"] for _ in range(chats)]
    said, right = [[] for _ in gold], []
    for t in range(turns):
        rows = [ask(s + [c[2 * t]], c[2 * t + 1]["content"], "chat") for s, c in zip(said, gold)]
        got = answer(net, tok, rows)
        said = [r["messages"] + [{"role": "assistant", "content": x}] for r, x in zip(rows, got)]
        right.append(sum(x == r["expected"] for r, x in zip(rows, got)))
    return right


@torch.no_grad()
def same_as_training_code(folder, net, tok, rows, limit=40):
    """How many answers the training code's own model gives, token for token, the same."""
    raw = M.Model(M.CONFIG)
    raw.load_state_dict({k.removeprefix("model."): v.float() for k, v in load_file(folder / "model.safetensors").items()})
    stop, same = set(tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])), 0
    for r in rows:
        enc = tok.apply_chat_template(r["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt")
        ids = enc["input_ids"]
        new = net.generate(input_ids=ids, attention_mask=enc["attention_mask"], max_new_tokens=limit, do_sample=False)[0, ids.shape[1]:].tolist()
        same += M.greedy(raw, ids[0].tolist(), stop, limit) == [t for t in new if t not in stop]
    return same


def table(rows, got):
    """Markdown rows of exact match by task, and some of the wrong answers."""
    hits, wrong = {}, {}
    for r, x in zip(rows, got):
        q = r["messages"][-1]["content"]
        lang = "zh" if re.search("[\u2e80-\uffff]", q) else "en"
        for key in (lang, "all"):
            h = hits.setdefault(r["task"], {}).setdefault(key, [0, 0])
            h[0] += x == r["expected"]
            h[1] += 1
        if x != r["expected"]:
            wrong.setdefault(r["task"], []).append("`%s` -> `%s` (expected `%s`)" % tuple(s.replace("\n", " ") for s in (q, x, r["expected"])))
    pct = lambda h: "%.1f" % (100 * h[0] / h[1]) if h else "-"
    lines = ["| %s | %s | %s | %s | %d |" % (t, pct(h["all"]), pct(h.get("en")), pct(h.get("zh")), h["all"][1]) for t, h in hits.items()]
    return lines, ["- %s: %s" % (t, "; ".join(w[:4])) for t, w in wrong.items()]


def report(a, folder, lines, wrong, chats, parity, run):
    size = sum(f.stat().st_size for f in folder.iterdir())
    c = json.loads((folder / "config.json").read_text())
    shape = ", ".join("%s %s" % (k, c[k]) for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                                     "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"))
    out = ["# What the demo model can do", "", "Written by `train/evaluate.py`. Exact match in per cent, greedy, f32 arithmetic on the shipped bf16 weights.",
           "Operands, lists, phrases, ranges and (for who, greet) wordings were held out of training.", "",
           "| task | all | English | Chinese | prompts |", "| --- | --- | --- | --- | --- |", *lines, "",
           "Chats of 10 turns with the model's own answers in the context, right answers by turn: " + ", ".join("%d" % x for x in chats) + " of 20.",
           "Answers equal to those of the training code: %d of %d." % parity, "",
           "## Model and training", "", "- Shape: %s." % shape, "- Size of `model/`: %.1f MB." % (size / 1e6),
           "- Training: " + ", ".join("%s %s" % (k, v) for k, v in run.items()) + ". CPU, float32.",
           "- The run depends on time as well as on the seed (the learning rate follows the clock), so a second run gives a model of like quality, not the same bytes.", "",
           "## Wrong answers, as they came", "", *(wrong or ["None."]), "", NOTES.read_text().strip() if NOTES.exists() else ""]
    (folder.parent / "REPORT.md").write_text("\n".join(out).rstrip() + "\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "model")
    p.add_argument("--run", type=pathlib.Path, help="run.json that train.py left")
    p.add_argument("--prompts", type=int, default=300)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--write", action="store_true", help="write heldout.jsonl and REPORT.md beside the model")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    tok = AutoTokenizer.from_pretrained(a.model)
    net = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    n = a.prompts
    rows = [r for t in data.WEIGHTS for r in single(t, n, "report")]
    rows += [r for t in WORDED for r in single(t, n // 2, "report", True, t + ", new wording")]
    rows += late(n // 2, "report") + by_hand(n, "report")
    lines, wrong = table(rows, answer(net, tok, rows))
    print("\n".join(lines + wrong))
    if not a.write:
        return
    few = [r for t in data.WEIGHTS for r in single(t, 27, "few")] + late(30, "few")
    (a.model.parent / "heldout.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in few))
    got = answer(net, tok, few)
    print("heldout.jsonl: %d of %d" % (sum(x == r["expected"] for r, x in zip(few, got)), len(few)))
    parity = (same_as_training_code(a.model, net, tok, few[::3]), len(few[::3]))
    report(a, a.model, lines, wrong, free_chats(net, tok, "report"), parity, json.loads(a.run.read_text()) if a.run else {})


if __name__ == "__main__":
    main()
