"""deploy/up and deploy/down, with the programs that were built for the tests."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import httpx
import pytest

from server import BINARY, free_port
from test_control import folder
from test_private_postgres import processes_in

__all__ = ["folder"]

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"


def arguments(state):
    return [
        "--state", state, "--bin", str(BINARY.parent),
        "--port", str(free_port()), "--control-port", str(free_port()),
    ]


def up(*arguments, **environment):
    return subprocess.run(
        [str(DEPLOY / "up"), *arguments],
        capture_output=True, text=True, timeout=200, env={**os.environ, **environment},
    )


def down(state):
    return subprocess.run(
        [str(DEPLOY / "down"), "--state", state], capture_output=True, text=True, timeout=200
    )


def told(text, name):
    return re.search(rf"^{name} +(.*)$", text, re.MULTILINE)[1]


def assert_nothing_runs(state, addresses=()):
    assert not processes_in(os.path.realpath(state) + "/postgres/data")
    assert not list(pathlib.Path(state).glob("*.pid"))
    for address in addresses:
        try:
            httpx.get(address + "/health")
        except httpx.TransportError:
            continue
        raise AssertionError(f"{address} still answers")


@pytest.mark.timeout(400)
def test_all_is_up_when_it_returns_and_down_keeps_the_data(folder):
    state = str(folder / "state")
    flags = arguments(state)
    first = up("--detach", *flags)
    assert first.returncode == 0, first.stderr
    addresses = [told(first.stdout, "data plane"), told(first.stdout, "control plane")]
    for address in addresses:
        assert httpx.get(address + "/ready").status_code == 200
    assert len(json.loads(told(first.stdout, "administrator"))["password"]) >= 20
    for line in re.findall(r"^  (curl .*)$", first.stdout, re.MULTILINE):
        done = subprocess.run(["bash", "-c", line + " --fail"], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
    again = up("--detach", *flags)
    assert again.returncode == 1 and "runs already" in again.stderr
    assert httpx.get(addresses[0] + "/ready").status_code == 200
    assert down(state).returncode == 0
    assert_nothing_runs(state, addresses)
    assert down(state).returncode == 0

    second = up("--detach", *flags)
    assert second.returncode == 0, second.stderr
    assert "password" not in told(second.stdout, "administrator")
    assert down(state).returncode == 0


@pytest.mark.timeout(400)
def test_what_cannot_start_is_said_and_leaves_nothing(folder):
    state = str(folder / "state")
    failed = up("--detach", *arguments(state), PAGODA_DATABASE_URL="host=/proc/none user=a")
    assert failed.returncode == 1, failed.stdout
    assert "control ended" in failed.stderr and "cannot" in failed.stderr, failed.stderr
    assert_nothing_runs(state)
    assert up("--port", "x").returncode == 2
    assert up("--no-such").returncode == 2


@pytest.mark.timeout(400)
def test_ctrl_c_ends_all(folder):
    state = str(folder / "state")
    running = subprocess.Popen(
        [str(DEPLOY / "up"), *arguments(state)], stdout=subprocess.PIPE, text=True
    )
    for line in running.stdout:
        if line.startswith("Ctrl-C"):
            break
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) == 130
    deadline = time.monotonic() + 30
    while processes_in(os.path.realpath(state) + "/postgres/data"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert_nothing_runs(state)
