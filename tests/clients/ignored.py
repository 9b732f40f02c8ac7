"""Fails if an ignored Rust test is not in tests/skips.toml, or an entry there names no test."""

import json
import subprocess
import sys
import tomllib

with open("tests/skips.toml", "rb") as file:
    reasons = tomllib.load(file).get("rust", {})

listing = subprocess.run(
    ["cargo", "nextest", "list", "--workspace", "--run-ignored", "all", "--message-format", "json",
     "--config-file", "tests/nextest.toml"],
    stdout=subprocess.PIPE, check=True,
)
ignored = set()
for suite in json.loads(listing.stdout)["rust-suites"].values():
    for name, test in suite["testcases"].items():
        if test["ignored"]:
            ignored.add(f"{suite['binary-id']} {name}")

problems = [f"ignored without a reason in tests/skips.toml: {name}" for name in ignored - set(reasons)]
problems += [f"tests/skips.toml names no ignored test: {name}" for name in set(reasons) - ignored]
problems += [f"tests/skips.toml gives no reason: {name}" for name in reasons if not reasons[name].strip()]
print("\n".join(sorted(problems)) or f"{len(ignored)} ignored, each with a reason")
sys.exit(bool(problems))
