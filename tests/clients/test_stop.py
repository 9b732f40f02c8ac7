"""How a busy process stops: after a deadline, at a second Ctrl-C, and on its own when it must."""

import signal
import time

import httpx
import openai
import pytest

from conftest import sdk
from server import Server


def endless(server):
    """A stream that has begun and would take far longer than any test."""
    client = sdk(server)
    room = client.models.list().data[0].model_extra["max_model_len"]
    stream = client.completions.create(
        model="default", prompt=["1, 2,"] * 64, n=4, max_tokens=room - 40, stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = iter(stream)
    next(chunks)
    return chunks


def wait_until_draining(server):
    deadline = time.monotonic() + 20
    while httpx.get(server.url + "/ready").status_code != 503:
        assert time.monotonic() < deadline, "/ready stays as it was"
        time.sleep(0.01)


def test_what_the_deadline_cuts_off_is_told_so():
    with Server("--shutdown-timeout", "1", "--max-num-seqs", "1") as server:
        chunks = endless(server)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as cut:
            for _ in chunks:
                pass
        assert cut.value.code == "shutting_down", cut.value
        assert server.process.wait(timeout=30) == 0


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(again):
    with Server("--shutdown-timeout", "600", "--max-num-seqs", "1") as server:
        chunks = endless(server)
        server.process.send_signal(signal.SIGINT)
        wait_until_draining(server)
        next(chunks)
        assert server.process.poll() is None, "the first signal cut off what runs"
        server.process.send_signal(again)
        assert server.process.wait(timeout=30) == 0
        assert "stopping at once" in server.output()
