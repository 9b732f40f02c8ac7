"""What became of each kernel of a source: registers, stack, spills, shared memory, opcodes.

Compiles a source for an architecture and reads the assembler's report and the disassembly. What was
measured is kept by content, so that a second run compiles what has changed and nothing else.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tempfile

from nvrtc import CompileError, Nvrtc, library_file

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = ROOT / "kernels" / "cuda"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")

# As the engine compiles; the last makes the assembler report.
OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v")

# Opcodes worth a place in the table: matrices, asynchronous copies, wide accesses, barriers, atomics,
# what registers spill to, double precision, calls, registers that change hands or that a warp comes to
# share. By their first word.
WATCHED = {
    "HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "LDSM", "STSM", "LDGSTS", "UTMALDG", "UTMASTG",
    "UBLKCP", "SYNCS", "WARPGROUP", "BAR", "LDL", "STL", "LDG", "STG", "ATOM", "ATOMG", "ATOMS", "RED",
    "DADD", "DMUL", "DFMA", "CALL", "SHFL", "ACQBULK", "PREEXIT", "USETMAXREG", "R2UR",
}
# What a kernel may not do before it has waited for the kernels before it (ACQBULK). CCTL, which only
# brings a line nearer, it may.
ACCESSES = {
    "LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UTMALDG", "UTMASTG", "UBLKCP",
}
# Of these the whole word is kept; of the others the first, and how wide the access is.
WHOLE = {"HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA"}
WIDTHS = {"64", "128", "256"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel on one architecture. Bytes, but for registers (of a thread) and opcodes (counts)."""

    registers: int
    stack: int
    spills: int
    shared: int
    opcodes: dict
    # Accesses to memory before the kernel waits for others. Not in the table: none has any.
    early: int = dataclasses.field(default=0, compare=False)

    def opcode_words(self):
        return " ".join(f"{name}:{count}" for name, count in sorted(self.opcodes.items()))


def headers_of(text, folder=SOURCES):
    """Texts of all that a source includes for a device, by the names in its includes."""
    found = {}
    waiting = [text]
    while waiting:
        for name in re.findall(r'#include "([^"]+)"', waiting.pop()):
            if name not in found and not name.startswith("emulation/"):
                found[name] = (folder / name).read_text(encoding="utf-8")
                waiting.append(found[name])
    return found


def compiled(nvrtc, name, text, headers, architecture):
    """Rows by kernel."""
    options = [f"--gpu-architecture={architecture}", *OPTIONS]
    cubin, log = nvrtc.compile(name, text, headers, options)
    resources = resources_of(log)
    opcodes = opcodes_of(cubin)
    if set(resources) != set(opcodes):
        raise CompileError(f"{name}: the report has {sorted(resources)}, the code {sorted(opcodes)}")
    return {
        kernel: Row(**resources[kernel], opcodes=opcodes[kernel][0], early=opcodes[kernel][1])
        for kernel in resources
    }


def resources_of(log):
    """Registers and bytes by kernel, from the assembler's report."""
    rows = {}
    entries = re.split(r"Compiling entry function '([^']+)' for '[^']+'", log)
    for kernel, report in zip(entries[1::2], entries[2::2]):
        used = re.search(r"Used (\d+) registers", report)
        frame = re.search(
            r"Function properties for " + re.escape(kernel) +
            r"\n\D*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
        if not used or not frame:
            raise CompileError(f"no report of {kernel} in:\n{report}")
        shared = re.search(r"(\d+) bytes smem", report)
        rows[kernel] = {
            "registers": int(used[1]),
            "stack": int(frame[1]),
            "spills": int(frame[2]) + int(frame[3]),
            "shared": int(shared[1]) if shared else 0,
        }
    return rows


def opcodes_of(cubin):
    """By kernel, from the disassembly: counts of the watched opcodes, and of accesses before the wait."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [library_file("*/bin/nvdisasm"), "-c", file.name],
            capture_output=True, text=True, check=True,
        ).stdout
    kernels, early = {}, collections.Counter()
    counts = None
    for line in listing.splitlines():
        section = re.match(r"\.section\s+\.text\.([^,\s]+)", line.strip())
        if section:
            name = section[1].strip('"')
            counts = kernels.setdefault(name, collections.Counter())
        instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
        if instruction and counts is not None:
            opcode = watched(instruction[1])
            if opcode:
                counts[opcode] += 1
            if instruction[1].split(".")[0] in ACCESSES and "ACQBULK" not in counts:
                early[name] += 1
    return {kernel: (dict(counts), early[kernel]) for kernel, counts in kernels.items()}


def watched(opcode):
    """The name under which an opcode is counted, or None."""
    words = opcode.split(".")
    if words[0] not in WATCHED:
        return None
    if words[0] in WHOLE:
        return opcode
    width = [word for word in words[1:] if word in WIDTHS]
    return ".".join([words[0], *width])


def sources():
    """Every source of kernels, by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.cu"))}


def measured(cache):
    """Rows by (source, kernel, architecture) of all that there is, compiled on all cores."""
    nvrtc = Nvrtc()
    cache.mkdir(parents=True, exist_ok=True)
    jobs = [
        (name, text, headers_of(text), architecture)
        for name, text in sources().items() for architecture in ARCHITECTURES
    ]
    # The longest first, so that none is left to the end.
    jobs.sort(key=lambda job: -sum(map(len, job[2].values())) - len(job[1]))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: kept(cache, nvrtc, *job), jobs)
        return {
            (name, kernel, architecture): row
            for (name, _, _, architecture), rows in zip(jobs, results)
            for kernel, row in rows.items()
        }


def kept(cache, nvrtc, name, text, headers, architecture):
    """Rows by kernel, from the cache if this content was compiled before."""
    versions = (pathlib.Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8")
    reader = pathlib.Path(__file__).read_text(encoding="utf-8")
    content = json.dumps([name, text, headers, architecture, OPTIONS, versions, reader])
    file = cache / f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.json"
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {kernel: Row(**row) for kernel, row in stored.items()}
    rows = compiled(nvrtc, name, text, headers, architecture)
    part = file.with_suffix(f".{os.getpid()}")
    stored = {kernel: dataclasses.asdict(row) for kernel, row in rows.items()}
    part.write_text(json.dumps(stored), encoding="utf-8")
    part.replace(file)
    return rows
