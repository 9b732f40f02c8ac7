"""Draws what GPUs have shown into README.md, from the lines in benches/results/gpu-*.jsonl.

    python3 benches/gpu_table.py

The latest line of each part and GPU counts. A line is marked where the code that it speaks of has
changed since its commit. What the emulation ran, and what was run at tiny sizes, is no result. With no
lines of a GPU it says so. Below the parts stand our figures beside those that peers gave on the same GPU
under the same names.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
BEGIN = "<!-- gpu: begin; drawn by benches/gpu_table.py -->"
END = "<!-- gpu: end -->"
# More figures than these are not told one by one.
MANY = 12
# Parts whose figures peers have, too, and the peers' parts.
OURS = ("kernels", "llama-8b")
PEERS = {"peer-cublaslt": "cuBLASLt", "peer-attention": "PyTorch", "peer-transformers": "transformers"}
NOTHING = "No GPU has run the suite yet: there are no figures of one."


def lines_of(folder):
    """The latest line of each GPU and part, in the order of the files' parts."""
    latest = {}
    for path in sorted(folder.glob("gpu-*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["machine"]["gpu"] == "emulated" or line["settings"]["tiny"]:
                continue
            key = line["machine"]["gpu"], line["part"]
            if key not in latest or latest[key]["at_unix_s"] <= line["at_unix_s"]:
                latest[key] = line
    return list(latest.values())


def age(line, root):
    """What of its code has changed since a line was made, in words; nothing if none has."""
    changed = []
    for path in line["code"]:
        status = subprocess.run(
            ["git", "diff", "--quiet", line["commit"].rstrip("+"), "--", path],
            cwd=root, stderr=subprocess.DEVNULL,
        ).returncode
        if status not in (0, 1):
            return "of an unknown commit"
        if status == 1:
            changed.append(f"`{path}`")
    return f"older than {', '.join(changed)}" if changed else ""


def outcome(line):
    if line.get("error"):
        return f"failed: {line['error']}"
    if not line["right"]:
        return "**wrong**"
    return "right" if line["ended"] else "right as far as it came"


def headline(line):
    """What a reader wants of a part first."""
    figures = [finding["figure"] for finding in line["findings"] if "figure" in finding]
    checks = [finding["check"] for finding in line["findings"] if "check" in finding]
    notes = [finding["note"] for finding in line["findings"] if "note" in finding]
    words = [f"{note['what']}: {note['text']}" for note in notes[:2]]
    if len(notes) > 2:
        words.append(f"{len(notes) - 2} notes more")
    if checks:
        words.append(f"{sum(check['cases'] for check in checks)} results compared")
    shares = sorted(figure["share"] for figure in figures if figure.get("share") is not None)
    if len(figures) > MANY and len(shares) > 2:
        middle = shares[len(shares) // 2]
        words.append(f"{len(shares)} shares of a ceiling: median {middle:.0%}, best {shares[-1]:.0%}")
    elif len(figures) > MANY:
        words.append(f"{len(figures)} figures, such as {told(figures[0])}")
    else:
        words += [told(figure) for figure in figures]
    return "; ".join(words)


def told(figure):
    share = f" ({figure['share']:.0%} of {figure['of']})" if figure.get("share") is not None else ""
    return f"{figure['what']} {figure['median']:.4g} {figure['unit']}{share}"


def table(lines, root):
    if not lines:
        return NOTHING
    rows = ["| part | GPU | commit | outcome | shown |", "| --- | --- | --- | --- | --- |"]
    for line in lines:
        commit = " ".join(filter(None, [f"`{line['commit']}`", age(line, root)]))
        cells = [line["part"], line["machine"]["gpu"], commit, outcome(line), headline(line)]
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(rows)


def figures_of(lines, gpu, part):
    """The figures of a part by name."""
    own = [line for line in lines if line["part"] == part and line["machine"]["gpu"] == gpu]
    found = [finding["figure"] for line in own for finding in line["findings"] if "figure" in finding]
    return {figure["what"]: figure for figure in found}


def beside_peers(lines):
    """A row for each of our figures that a peer has, too. How much faster ours is, whatever the unit."""
    rows = []
    for gpu in sorted({line["machine"]["gpu"] for line in lines}):
        ours = {}
        for part in OURS:
            ours.update(figures_of(lines, gpu, part))
        for part, peer in PEERS.items():
            for what, theirs in figures_of(lines, gpu, part).items():
                # A peer with several ways names its way behind ours.
                name, _, way = what.partition(": ") if what not in ours else (what, "", "")
                if name in ours:
                    rows.append(row_beside(ours[name], theirs, name, way or peer))
    if not rows:
        return ""
    head = ["| | ours | share | peer | theirs | ours is faster by |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join(["", *head, *rows])


def row_beside(ours, theirs, name, peer):
    faster = theirs["median"] / ours["median"]
    if ours["unit"].endswith("/s"):
        faster = 1 / faster
    share = f"{ours['share']:.0%}" if ours.get("share") is not None else ""
    number = lambda figure: f"{figure['median']:.4g} {figure['unit']}"
    return f"| {name} | {number(ours)} | {share} | {peer} | {number(theirs)} | {faster:.2f} |"


def drawn(text, content):
    """`text` with `content` between the marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main():
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    lines = lines_of(ROOT / "benches" / "results")
    content = "\n".join(filter(None, [table(lines, ROOT), beside_peers(lines)]))
    readme.write_text(drawn(text, content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
