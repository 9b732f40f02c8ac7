"""Clients that have an environment of their own: programs of `programs/` and `node/`, to which a
test says what to do, a line at a time."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def missing(path):
    raise RuntimeError(f"{path} is not there: tests/run installs it")


def python_of(environment):
    """The Python of an environment beside the one that runs the tests."""
    path = pathlib.Path(sys.prefix) / environment / "bin/python"
    return str(path) if path.exists() else missing(path)


def node():
    """The Node of the environment that runs the tests, or the machine's."""
    if not (HERE / "node/node_modules").exists():
        missing(HERE / "node/node_modules")
    path = pathlib.Path(sys.prefix) / "bin/node"
    return str(path) if path.exists() else shutil.which("node") or missing(path)


COMMANDS = {
    "langchain": lambda: [sys.executable, "programs/with_langchain.py"],
    "litellm": lambda: [python_of("litellm"), "programs/with_litellm.py"],
    "node-openai": lambda: [node(), "node/openai.mjs"],
    "ai-sdk": lambda: [node(), "node/ai.mjs"],
}

# Nothing of these libraries may call home from a test.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
}


class Program:
    """A client that runs. `with Program("litellm") as client: client.ask("chat", …)`."""

    def __init__(self, name):
        self.process = subprocess.Popen(
            COMMANDS[name](), cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **ENVIRONMENT},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def ask(self, do, **asked):
        """What became of an operation: what it returned, or the error that it raised."""
        self.process.stdin.write(json.dumps({"do": do, **asked}) + "\n")
        self.process.stdin.flush()
        # Some libraries print, too.
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the client ended with {self.process.wait()}")
