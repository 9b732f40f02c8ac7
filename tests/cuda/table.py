"""The table of kernels (kernels.toml): read, compared with what was compiled, written anew.

    .venv/bin/python tests/cuda/table.py --write    makes kernels.toml say what the sources compile to

The promises (promises.toml) are written by hand and hold whatever the table says.
"""

import argparse
import fnmatch
import pathlib
import re
import sys
import tomllib

from measure import ARCHITECTURES, ROOT, Row, measured

FOLDER = pathlib.Path(__file__).parent
TABLE = FOLDER / "kernels.toml"
PROMISES = FOLDER / "promises.toml"
REWRITE = ".venv/bin/python tests/cuda/table.py --write"

HEADER = f"""\
# What every kernel compiles to: registers of a thread, bytes of stack, spills and static shared memory,
# and how often the opcodes worth watching stand in its code. By NVRTC, for each architecture.
#
# tests/cuda holds the sources against it. Written by: {REWRITE}
"""

# Architectures on which every kernel is launched so that it may begin early.
BEGUN_EARLY = {"sm_90a"}

# What any block may have, whatever the kernel.
STATIC_SHARED_MAX = 48 << 10
REGISTERS_MAX = 255


def read(text):
    """Rows by (source, kernel, architecture)."""
    rows = {}
    for source, kernels in tomllib.loads(text).items():
        for kernel, architectures in kernels.items():
            for architecture, row in architectures.items():
                opcodes = dict(word.rsplit(":", 1) for word in row.pop("opcodes").split())
                opcodes = {name: int(count) for name, count in opcodes.items()}
                rows[source, kernel, architecture] = Row(**row, opcodes=opcodes)
    return rows


def written(rows):
    """The text of a table: a line for each kernel and architecture."""
    lines = [HEADER]
    for source in sorted({source for source, _, _ in rows}):
        lines.append(f'["{source}"]')
        own = sorted(key for key in rows if key[0] == source)
        width = max(len(f"{kernel}.{architecture}") for _, kernel, architecture in own)
        for key in own:
            row = rows[key]
            lines.append(
                f"{key[1] + '.' + key[2]:{width}} = {{ registers = {row.registers:3}, stack = {row.stack}, "
                f"spills = {row.spills}, shared = {row.shared}, opcodes = \"{row.opcode_words()}\" }}"
            )
        lines.append("")
    return "\n".join(lines)


def differences(table, rows):
    """What a person must know of where the two part, a line each."""
    lines = []
    for key in sorted(table.keys() | rows.keys()):
        place = f"{key[0]}: {key[1]} on {key[2]}"
        if key not in rows:
            lines.append(f"{place}: in the table, but no such kernel was compiled")
        elif key not in table:
            lines.append(f"{place}: not in the table ({rows[key].registers} registers)")
        elif table[key] != rows[key]:
            lines.append(f"{place}: {', '.join(changes(table[key], rows[key]))}")
    return lines


def changes(before, after):
    for field in ("registers", "stack", "spills", "shared"):
        if getattr(before, field) != getattr(after, field):
            yield f"{field} {getattr(before, field)} -> {getattr(after, field)}"
    for opcode in sorted(before.opcodes.keys() | after.opcodes.keys()):
        counts = before.opcodes.get(opcode, 0), after.opcodes.get(opcode, 0)
        if counts[0] != counts[1]:
            yield f"{opcode} {counts[0]} -> {counts[1]}"


def broken_promises(promises, rows):
    """Promises that a row breaks, and those that no kernel keeps because none is meant."""
    lines = []
    for key, row in sorted(rows.items()):
        place = f"{key[0]}: {key[1]} on {key[2]}"
        mine = [p for p in promises if any(fnmatch.fnmatch(key[1], name) for name in p["kernels"])]
        lines += [f"{place}: {line}" for line in limits(row, mine)]
        if key[2] in BEGUN_EARLY:
            lines += [f"{place}: {line}" for line in haste(row)]
        for promise in mine:
            for opcode in promise.get("opcodes", []):
                if not any(name.startswith(opcode) for name in row.opcodes):
                    lines.append(f"{place}: no {opcode} in its code")
            for opcode, most in promise.get("most", {}).items():
                if row.opcodes.get(opcode, 0) > most:
                    lines.append(f"{place}: {row.opcodes[opcode]} {opcode} in its code")
    names = {kernel for _, kernel, _ in rows}
    for promise in promises:
        for name in promise["kernels"]:
            if not fnmatch.filter(names, name):
                lines.append(f"{PROMISES.name}: no kernel is named {name}")
    return lines


def haste(row):
    """What a kernel does that may have been started while the one before it was ending."""
    if "ACQBULK" not in row.opcodes:
        yield "never waits for the kernels before it"
    elif row.early:
        yield f"{row.early} accesses to memory before it waits for the kernels before it"


def limits(row, promises):
    """What a row has too much of."""
    stack, spills = (max((p.get(key, 0) for p in promises), default=0) for key in ("stack", "spills"))
    if row.spills > spills:
        yield f"{row.spills} bytes of registers are spilled"
    if row.stack > stack:
        yield f"{row.stack} bytes of stack: an array is indexed at run time"
    local = {"LDL", "STL"} & {name.split(".")[0] for name in row.opcodes}
    if local and not stack:
        yield f"reaches local memory: {' and '.join(sorted(local))}"
    if row.shared > STATIC_SHARED_MAX or row.registers > REGISTERS_MAX:
        yield f"{row.shared} bytes of shared memory and {row.registers} registers"


def declared_kernels(text):
    """Names that a source gives to KERNEL itself; those that its own macros put together are not here."""
    return set(re.findall(r"^\s*(?:HOPPER_)?KERNEL(?:_READING_AHEAD)?\(\s*(\w+)\s*,", text, flags=re.M))


def promises():
    return tomllib.loads(PROMISES.read_text(encoding="utf-8"))["promise"]


def main():
    parser = argparse.ArgumentParser(description="The table of what every kernel compiles to.")
    parser.add_argument("--write", action="store_true", help="write kernels.toml anew")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target" / "cuda-table")
    arguments = parser.parse_args()
    rows = measured(arguments.cache)
    before = read(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    lines = differences(before, rows)
    print("\n".join(lines) or f"{len(rows)} rows of {len(ARCHITECTURES)} architectures: as the table says")
    if arguments.write:
        TABLE.write_text(written(rows), encoding="utf-8")
        lines = []
    lines += broken_promises(promises(), rows)
    if lines:
        print("\n".join(lines), file=sys.stderr)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
