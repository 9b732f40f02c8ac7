"""What only time shows: memory that stays flat, and rounds of clients and processes that die.

Run by tests/run --long alone, but for a short soak."""

import random
import socket
import threading
import time

import httpx
import openai
import pytest

from conftest import sdk
from server import Server

SOAK_S = 300
# A taste of it that always runs, with room for what the allocator still learns.
SHORT_SOAK_S = 16
SHORT_SOAK_BYTES = 8 << 20
LEAVE_ROUNDS = 400
KILL_ROUNDS = 15
# The allocator keeps what it has seen at its busiest; a leak of 1 KiB a request would be far more.
FLAT_BYTES = 2 << 20


def resident_bytes(process):
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def ask(client, chance):
    """One request of a mixed crowd: streamed or not, left early or not, chat or completion."""
    options = {"model": "default", "max_tokens": chance.randint(1, 60),
               "temperature": chance.choice([0, 1]), "extra_body": {"ignore_eos": True}}
    if chance.random() < 0.5:
        text = f"What is {chance.randint(0, 99)} + {chance.randint(0, 99)}?"
        make = client.chat.completions.create
        options["messages"] = [{"role": "user", "content": text}]
    else:
        make = client.completions.create
        options |= {"prompt": "1, 2, 3, " * chance.randint(1, 20), "n": chance.randint(1, 3)}
    if chance.random() < 0.5:
        make(**options)
        return
    stream = make(stream=True, **options)
    leaves_after = chance.randint(1, 80)
    for number, _ in enumerate(stream):
        if number == leaves_after:
            break
    stream.close()


def soak(seconds, grown_max, tokens_min):
    """Mixed requests for so long: memory ends with what it had half-way."""
    # A small cache: its pages come when they are first used, and all of them are within seconds.
    with Server("--kv-cache-memory-bytes", "16MiB") as server:
        until = time.monotonic() + seconds
        failures = []

        def work(number):
            chance, client = random.Random(number), sdk(server)
            try:
                while time.monotonic() < until:
                    ask(client, chance)
            except Exception as error:  # reported below, by the test's own thread
                failures.append(error)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for worker in workers:
            worker.start()
        time.sleep(seconds / 2)
        half = resident_bytes(server.process)
        for worker in workers:
            worker.join()
        assert not failures, failures
        server.wait_idle()
        end = resident_bytes(server.process)
        done = server.metrics()["pagoda_generation_tokens_total"]
        assert done > tokens_min, "too little happened to tell"
        assert end - half <= grown_max, f"grew by {(end - half) >> 10} KiB in the second half"


def test_memory_is_flat_over_seconds_of_mixed_requests():
    soak(SHORT_SOAK_S, SHORT_SOAK_BYTES, tokens_min=500)


@pytest.mark.timeout(900)
def test_memory_is_flat_over_minutes_of_mixed_requests(long_proof):
    soak(SOAK_S, FLAT_BYTES, tokens_min=10_000)


@pytest.mark.timeout(900)
def test_hundreds_of_sockets_that_die_leave_nothing(long_proof):
    body = b'{"prompt": "1, 2,", "max_tokens": 400, "n": 8, "stream": %s, "ignore_eos": true}'
    with Server("--max-num-seqs", "8") as server:
        chance = random.Random(7)
        for _ in range(LEAVE_ROUNDS):
            text = body % chance.choice([b"true", b"false"])
            request = (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
                       % len(text)) + text
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                # Whole or cut off anywhere, and gone at any moment after.
                client.sendall(request[: chance.choice([len(request), chance.randrange(len(request))])])
                time.sleep(chance.random() * 0.1)
        server.wait_idle(timeout_s=60)
        answer = sdk(server).completions.create(model="default", prompt="1, 2,", max_tokens=4)
        assert answer.usage.completion_tokens >= 1


@pytest.mark.timeout(900)
def test_a_killed_process_leaves_nothing_in_the_way_of_the_next(long_proof):
    port = None
    for number in range(KILL_ROUNDS):
        with Server(port=port) as server:
            port = server.port
            stream = sdk(server).completions.create(
                model="default", prompt="1, 2,", max_tokens=400, n=16, stream=True,
                extra_body={"ignore_eos": True},
            )
            chunks = iter(stream)
            for _ in range(number):
                next(chunks)
            server.process.kill()
            assert server.process.wait(timeout=30) == -9
            with pytest.raises((openai.APIError, httpx.TransportError)):
                for _ in chunks:
                    pass
