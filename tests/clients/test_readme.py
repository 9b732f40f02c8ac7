"""What README.md and a start of the server tell people to run, run as it stands."""

import json
import os
import re
import subprocess
import sys

import pytest

from program import ENVIRONMENT, HERE, node, python_of
from server import Server

README = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
# The port alone is changed: another server may have this one.
DEFAULT_URL = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def curl_lines():
    """Commands in blocks of shell, with the lines that continue them."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl ")]


def run(command, **environment):
    done = subprocess.run(
        command, cwd=HERE / "node", capture_output=True, text=True, timeout=120,
        env={**os.environ, **ENVIRONMENT, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def text_of(said):
    """What a chat answer says, whole or as a stream."""
    if not said.startswith("data: "):
        return json.loads(said)["choices"][0]["message"]["content"]
    frames = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert frames.pop() == "[DONE]"
    deltas = [json.loads(frame)["choices"][0]["delta"] for frame in frames]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_there_is_something_to_run():
    assert curl_lines() and len(blocks("python")) == 3 and len(blocks("js")) == 2


@pytest.mark.parametrize("line", curl_lines())
def test_a_line_of_curl(server, line):
    assert DEFAULT_URL in line
    assert "42" in text_of(run(["bash", "-c", line.replace(DEFAULT_URL, server.url)]))


@pytest.mark.parametrize("code", blocks("python"))
def test_lines_of_python(server, code):
    assert DEFAULT_URL in code
    python = python_of("litellm") if "import litellm" in code else sys.executable
    assert "42" in run([python, "-c", code.replace(DEFAULT_URL, server.url)])


@pytest.mark.parametrize("code", blocks("js"))
def test_lines_of_javascript(server, code):
    assert DEFAULT_URL in code
    code = code.replace(DEFAULT_URL, server.url)
    assert "42" in run([node(), "--input-type=module", "--eval", code])


@pytest.mark.parametrize("key", [None, "a-key"])
def test_the_line_that_a_start_prints(key):
    with Server(*(["--api-key", key] if key else [])) as server:
        printed = [line.strip() for line in server.output().splitlines()]
        (command,) = [line for line in printed if line.startswith("curl ")]
        assert "42" in text_of(run(["bash", "-c", command], PAGODA_API_KEY=key or ""))
