"""Writes tests/long-result.json: what the long proofs gave, at which commit, when.

Usage: long_result.py <rust report> <client report>. Names every long proof of tests/skips.toml."""

import datetime
import json
import pathlib
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as xml

TESTS = pathlib.Path(__file__).parents[1]


def git(*arguments):
    done = subprocess.run(["git", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def outcome(case):
    kinds = {child.tag for child in case}
    bad = kinds & {"failure", "error"}
    return "failed" if bad else "skipped" if "skipped" in kinds else "passed"


def cases(report, name_of):
    for case in xml.parse(report).iter("testcase"):
        yield name_of(case), {"outcome": outcome(case), "seconds": round(float(case.get("time", 0)), 1)}


skips = tomllib.loads((TESTS / "skips.toml").read_text(encoding="utf-8"))
rust, clients = sys.argv[1:]
ran = dict(cases(rust, lambda case: f"{case.get('classname')} {case.get('name')}"))
passed = sum(case["outcome"] == "passed" for case in ran.values())
in_clients = dict(cases(clients, lambda case: f"{case.get('classname').split('.')[-1]}.py::{case.get('name')}"))
passed += sum(case["outcome"] == "passed" for case in in_clients.values())
ran |= in_clients

long = [*skips.get("rust", {}), *skips.get("clients", {})]
result = {
    "commit": git("rev-parse", "HEAD"),
    # Results of a tree that nobody can check out again are marked.
    "changed_files": len(git("status", "--porcelain", "--untracked-files=no").splitlines()),
    "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    "passed": passed,
    "failed": sum(case["outcome"] == "failed" for case in ran.values()),
    "long_proofs": {name: ran.get(name, {"outcome": "did not run"}) for name in long},
}
(TESTS / "long-result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
bad = [name for name, case in result["long_proofs"].items() if case["outcome"] != "passed"]
print("\n".join(f"not passed: {name}" for name in bad) or f"{len(long)} long proofs passed")
sys.exit(bool(bad))
