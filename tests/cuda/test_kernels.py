"""Every kernel, compiled for every architecture: resources and opcodes as the table and the promises say.

No GPU is needed. What fails here after a change that is meant: look at the lines, then write the table anew.
"""

import dataclasses
import re

import pytest

import table
from measure import ARCHITECTURES, OPTIONS, ROOT, compiled, headers_of, sources
from nvrtc import CompileError

SOURCE_NAMES = sorted(sources())


@pytest.mark.parametrize("source", SOURCE_NAMES)
def test_kernels_are_as_the_table_says(rows, source):
    own = lambda rows: {key: row for key, row in rows.items() if key[0] == source}
    assert own(rows), "no kernel was compiled"
    lines = table.differences(own(table.read(table.TABLE.read_text(encoding="utf-8"))), own(rows))
    assert not lines, "\n" + "\n".join([*lines, f"if that is meant: {table.REWRITE}"])


def test_kernels_keep_their_promises(rows):
    lines = table.broken_promises(table.promises(), rows)
    assert not lines, "\n" + "\n".join(lines)


def test_the_table_is_written_by_its_command(rows):
    assert table.TABLE.read_text(encoding="utf-8") == table.written(rows), f"run {table.REWRITE}"


def test_every_declared_kernel_is_in_the_table():
    held = table.read(table.TABLE.read_text(encoding="utf-8"))
    for source, text in sources().items():
        kernels = {kernel for name, kernel, _ in held if name == source}
        assert table.declared_kernels(text) <= kernels, source
        assert kernels, f"{source} has no kernel in the table"


def test_every_source_is_part_of_the_binary():
    embedded = (ROOT / "kernels/src/cuda/source.rs").read_text(encoding="utf-8")
    headers = {name for text in sources().values() for name in headers_of(text)}
    for name in [*sources(), *headers]:
        assert f'source!("{name}")' in embedded, f"source.rs does not name {name}"


def test_the_engine_compiles_with_the_same_options():
    text = (ROOT / "kernels/src/cuda/nvidia/nvrtc.rs").read_text(encoding="utf-8")
    options = re.search(r"const OPTIONS: \[&CStr; \d+\] =\s*\[(.*?)\];", text, flags=re.S)[1]
    told_apart = {"--ptxas-options=-v"}
    assert set(re.findall(r'c"([^"]+)"', options)) == set(OPTIONS) - told_apart


# ---- that the above would notice

SMALL = """
#include "prelude.cuh"
struct Small { float* x; u32 n; };
__device__ void small(const Small& p) { BODY }
KERNEL(small_kernel, THREADS, Small, small)
"""


def small(nvrtc, body, architecture="sm_80", threads=128):
    text = SMALL.replace("BODY", body).replace("THREADS", str(threads))
    return compiled(nvrtc, "small.cu", text, headers_of(text), architecture)["small_kernel"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_measured_is_what_was_compiled(nvrtc, architecture):
    body = """
        __shared__ float held[96];
        held[thread_index() % 96] = p.x[thread_index()];
        sync_block();
        uint4 wide = load_once((const uint4*)p.x + thread_index());
        p.x[thread_index()] = held[(thread_index() + 1) % 96] + float_of_bits(wide.x ^ wide.y ^ wide.z ^ wide.w);
    """
    row = small(nvrtc, body, architecture)
    assert row.shared == 96 * 4
    assert row.opcodes["LDG.128"] == 1
    assert row.opcodes["BAR"] == 1
    assert row.opcodes["STG"] == 1
    assert (row.stack, row.spills) == (0, 0)
    assert 8 <= row.registers <= 40


def test_a_spill_breaks_a_promise(nvrtc):
    # More numbers at once than a thread of a block this large has registers for.
    body = """
        float held[80];
        _Pragma("unroll") for (u32 i = 0; i < 80; i++) held[i] = p.x[i * p.n];
        sync_block();
        _Pragma("unroll") for (u32 i = 0; i < 80; i++) p.x[i * p.n] = held[i] * held[79 - i];
    """
    row = small(nvrtc, body, threads=1024)
    lines = table.broken_promises([], {("small.cu", "small_kernel", "sm_80"): row})
    assert any("spilled" in line for line in lines), lines
    assert any("local memory" in line for line in lines), lines


def test_a_kernel_that_does_not_wait_for_others_breaks_a_promise(nvrtc):
    key = ("small.cu", "small_kernel", "sm_90a")
    body = "p.x[thread_index()] += 1.0f;"
    sound = small(nvrtc, body, "sm_90a")
    assert sound.opcodes["ACQBULK"] == 1 and table.broken_promises([], {key: sound}) == []
    told = []
    for declared in (
        # Not at all, and behind a read of what another kernel may still write.
        'extern "C" __global__ void small_kernel(const Small p) { small(p); }',
        'extern "C" __global__ void small_kernel(const Small p) '
        "{ float early = p.x[1]; wait_for_kernels(); p.x[0] = early; }",
    ):
        text = SMALL.replace("BODY", body).replace("KERNEL(small_kernel, THREADS, Small, small)", declared)
        row = compiled(nvrtc, "small.cu", text, headers_of(text), "sm_90a")["small_kernel"]
        told += table.broken_promises([], {key: row})
    assert len(told) == 2 and "never waits" in told[0] and "1 accesses" in told[1], told


def test_an_array_that_is_indexed_at_run_time_breaks_a_promise(nvrtc):
    body = """
        float held[64];
        for (u32 i = 0; i < 64; i++) held[i] = p.x[i];
        for (u32 i = 0; i < p.n; i++) held[i * p.n % 64] += held[(i * 7 + p.n) % 64];
        for (u32 i = 0; i < 64; i++) p.x[i] = held[i];
    """
    row = small(nvrtc, body)
    key = ("small.cu", "small_kernel", "sm_80")
    assert any("stack" in line for line in table.broken_promises([], {key: row}))
    allowed = [{"kernels": ["small_*"], "stack": row.stack}]
    assert table.broken_promises(allowed, {key: row}) == []


def test_a_source_that_an_architecture_has_not_is_refused(nvrtc):
    body = 'asm volatile("wgmma.fence.sync.aligned;");'
    with pytest.raises(CompileError, match="wgmma"):
        small(nvrtc, body, "sm_80")
    small(nvrtc, body, "sm_90a")


def test_a_difference_is_told(rows):
    key = sorted(rows)[0]
    row = rows[key]
    changed = dataclasses.replace(row, registers=row.registers + 8, opcodes={**row.opcodes, "STL": 3})
    lines = table.differences(rows, {**rows, key: changed})
    assert len(lines) == 1
    assert f"registers {row.registers} -> {row.registers + 8}, STL 0 -> 3" in lines[0], lines
    lost = {other: row for other, row in rows.items() if other != key}
    assert "no such kernel was compiled" in table.differences(rows, lost)[0]
    assert "not in the table" in table.differences(lost, rows)[0]


def test_a_promise_that_nobody_keeps_is_told(rows):
    promise = {"kernels": ["linear_bf16_1"], "opcodes": ["UTMALDG"], "most": {"LDG.128": 1, "HMMA": 0}}
    lines = table.broken_promises([promise], rows)
    assert len([line for line in lines if "no UTMALDG" in line]) == len(ARCHITECTURES)
    assert len([line for line in lines if re.search(r"\d LDG.128 in its code", line)]) == len(ARCHITECTURES)
    assert not any("HMMA" in line for line in lines if "linear_bf16_1 " in line)
    lines = table.broken_promises([{"kernels": ["no_such_kernel"]}], rows)
    assert any("no kernel is named no_such_kernel" in line for line in lines)


def test_a_table_reads_as_it_was_written(rows):
    assert table.read(table.written(rows)) == rows
    assert len(re.findall(r"^\w+\.sm_\w+ += ", table.written(rows), flags=re.M)) == len(rows)


def test_declared_kernels_are_found():
    text = '#define K(n) KERNEL(a_##n, 1, P, f)\n    KERNEL(one, 2, P, f)\nKERNEL(two, 2, P,\n  (f<1>))\n'
    assert table.declared_kernels(text) == {"one", "two"}
