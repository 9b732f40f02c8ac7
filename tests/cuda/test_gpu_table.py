"""benches/gpu_table.py: the table of what GPUs have shown, and its marks of age."""

import json
import subprocess

import pytest

from measure import ROOT

import gpu_table


def line(**fields):
    return {
        "part": "ceilings", "commit": "abc", "code": ["kernels"], "at_unix_s": 1, "ended": True,
        "right": True, "machine": {"gpu": "NVIDIA H200"}, "settings": {"tiny": False},
        "findings": [{"figure": {"what": "read", "unit": "GB/s", "median": 4321.0}}], **fields,
    }


def put(folder, *lines):
    (folder / "gpu-x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def checkout(tmp_path):
    """A repository of one commit, with the name of that commit."""
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout.strip()
    git("init", "-q")
    for folder in ("kernels", "engine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "code").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    return tmp_path, git("rev-parse", "--short=12", "HEAD")


def test_without_lines_of_a_gpu_it_says_so(tmp_path):
    assert gpu_table.table(gpu_table.lines_of(tmp_path), ROOT) == gpu_table.NOTHING
    for nothing in (line(machine={"gpu": "emulated"}), line(settings={"tiny": True})):
        put(tmp_path, nothing)
        assert gpu_table.table(gpu_table.lines_of(tmp_path), ROOT) == gpu_table.NOTHING


def test_the_latest_line_of_a_part_counts(tmp_path):
    newer = line(at_unix_s=3, right=False)
    put(tmp_path, line(at_unix_s=2), newer, line(part="ops"), line(machine={"gpu": "NVIDIA A100"}))
    assert gpu_table.lines_of(tmp_path) == [
        newer, line(part="ops"), line(machine={"gpu": "NVIDIA A100"})
    ]


def test_lines_older_than_their_code_are_marked(checkout):
    root, commit = checkout
    text = lambda: gpu_table.table([line(commit=commit)], root)
    assert "older" not in text() and "4321 GB/s" in text() and commit in text()
    (root / "engine" / "code").write_text("2")
    assert "older" not in text()
    (root / "kernels" / "code").write_text("2")
    assert "older than `kernels`" in text()
    assert "of an unknown commit" in gpu_table.table([line(commit="0123456789ab")], root)


def test_what_is_wrong_or_failed_is_said():
    assert "**wrong**" in gpu_table.outcome(line(right=False))
    assert "failed: a fault" in gpu_table.outcome(line(right=False, error="a fault"))
    assert "as far" in gpu_table.outcome(line(ended=False))


def test_many_figures_become_their_shares():
    figure = lambda share: {"figure": {"what": "w", "unit": "us", "median": 1.0, "share": share, "of": "read"}}
    text = gpu_table.headline(line(findings=[figure(i / 20) for i in range(20)]))
    assert "20 shares of a ceiling: median 50%, best 95%" in text


def test_peers_stand_beside_ours():
    def figure(what, unit, median, **more):
        return {"figure": {"what": what, "unit": unit, "median": median, **more}}

    lines = [
        line(part="kernels", findings=[figure("a product", "us", 10.0, share=0.5, of="read")]),
        line(part="llama-8b", findings=[figure("16 requests: output", "tokens/s", 1000.0)]),
        line(part="peer-cublaslt", findings=[figure("a product", "us", 15.0)]),
        line(part="peer-attention", findings=[figure("a product: cuDNN", "us", 5.0), figure("x", "us", 1.0)]),
        line(part="peer-transformers", findings=[figure("16 requests: output", "tokens/s", 500.0)]),
        line(part="peer-cublaslt", machine={"gpu": "other"}, findings=[figure("a product", "us", 1.0)]),
    ]
    rows = gpu_table.beside_peers(lines).splitlines()[3:]
    assert rows == [
        "| a product | 10 us | 50% | cuBLASLt | 15 us | 1.50 |",
        "| a product | 10 us | 50% | cuDNN | 5 us | 0.50 |",
        "| 16 requests: output | 1000 tokens/s |  | transformers | 500 tokens/s | 2.00 |",
    ]
    assert gpu_table.beside_peers(lines[:2]) == ""


def test_notes_are_told():
    note = {"note": {"what": "cuBLASLt", "text": "not measured: No module named 'torch'"}}
    assert "not measured: No module" in gpu_table.headline(line(findings=[note]))


def test_the_readme_has_a_place_for_it():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    content = gpu_table.drawn(text, "x").split(gpu_table.BEGIN)[1].split(gpu_table.END)[0]
    assert content == "\nx\n"
    lines = gpu_table.lines_of(ROOT / "benches" / "results")
    # What is there was drawn, not written; the marks of age depend on the checkout's history.
    assert (gpu_table.NOTHING in text) == (not lines)
