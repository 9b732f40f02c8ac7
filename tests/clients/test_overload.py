"""Far more clients than a server can serve, and clients that take nothing, send half or leave.

It refuses early and typed, keeps answering whoever asks how it is, and keeps nothing of anyone."""

import concurrent.futures
import contextlib
import http.client
import json
import resource
import selectors
import socket
import statistics
import struct
import threading
import time

import httpx
import pytest

from conftest import sdk
from server import Server
from test_long import resident_bytes

CONNECTIONS = 2000
CROWDS = 8
HEALTH_MAX_S = 0.1
# What the last two crowds may leave: the allocator's own changes, and not a KiB a client.
FLAT_BYTES = 4 << 20
GREETING = [{"role": "user", "content": "Hello!"}]


def request(body, path="/v1/completions", more=""):
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


@contextlib.contextmanager
def open_files(num):
    """Lets this process have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(num, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Answer:
    """The first answer on a connection that stays open."""

    def __init__(self, sock):
        self.sock, self.data = sock, b""

    def is_whole(self):
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = self.headers().get("content-length")
        if not end:
            return False
        return len(body) >= int(length) if length else body.endswith(b"0\r\n\r\n")

    def status(self):
        return int(self.data.split(b" ", 2)[1])

    def headers(self):
        lines = self.data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {k.lower(): v for k, v in (line.split(": ", 1) for line in lines if ": " in line)}

    def body(self):
        return json.loads(self.data.partition(b"\r\n\r\n")[2])


def crowd(server, num, body):
    """The answers to `num` connections that are all open at once, each asking once."""
    asked = request(body)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ready:
        sockets = [stack.enter_context(connect(server)) for _ in range(num)]
        answers = [Answer(sock) for sock in sockets]
        for answer in answers:
            answer.sock.sendall(asked)
            ready.register(answer.sock, selectors.EVENT_READ, answer)
        missing, until = num, time.monotonic() + 120
        while missing:
            assert time.monotonic() < until, f"{missing} of {num} without an answer"
            for key, _ in ready.select(timeout=1):
                data = key.fileobj.recv(65536)
                assert data, f"closed after {key.data.data!r}"
                key.data.data += data
                if key.data.is_whole():
                    ready.unregister(key.fileobj)
                    missing -= 1
        # Here all of them are still open.
        assert server.metrics()["pagoda_http_connections"] > num
    return answers


def health_times(server, stop):
    """Seconds that /health took, asked on one connection until told to stop."""
    times = []
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    while not stop.is_set():
        begun = time.monotonic()
        client.request("GET", "/health")
        answer = client.getresponse()
        answer.read()
        assert answer.status == 200
        times.append(time.monotonic() - begun)
        time.sleep(0.02)
    client.close()
    return times


def test_two_thousand_connections_are_answered_or_told_to_come_again():
    body = {"prompt": "1, 2,", "max_tokens": 24, "ignore_eos": True}
    flags = ("--max-num-seqs", 8, "--max-num-queued-reqs", 32, "--kv-cache-memory-bytes", "16MiB")
    with Server(*flags) as server, open_files(CONNECTIONS + 500):
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asking = pool.submit(health_times, server, stop)
            sizes, refused, answered = [], 0, 0
            try:
                for _ in range(CROWDS):
                    for answer in crowd(server, CONNECTIONS, body):
                        if answer.status() == 200:
                            answered += 1
                            continue
                        assert answer.status() in (429, 503), answer.data
                        assert int(answer.headers()["retry-after"]) >= 1
                        error = answer.body()["error"]
                        assert set(error) == {"message", "type", "param", "code"}
                        assert error["message"] and error["type"] and error["code"]
                        refused += 1
                    server.wait_idle()
                    sizes.append(resident_bytes(server.process))
            finally:
                stop.set()
            times = asking.result()
        assert answered + refused == CROWDS * CONNECTIONS
        assert answered >= CROWDS * 8 and refused >= CONNECTIONS, (answered, refused)
        assert len(times) > 20 and statistics.median(times) < HEALTH_MAX_S, statistics.median(times)
        # The first crowds bring what the allocator keeps, less each time; then two bring nothing.
        assert sizes[-1] - sizes[-3] <= FLAT_BYTES, [size >> 10 for size in sizes]
        answer = httpx.post(server.url + "/v1/completions", json={**body, "max_tokens": 1}, timeout=60)
        assert answer.status_code == 200
        assert server.stop() == 0


def test_slow_readers_hold_up_nobody_and_are_held_to_nothing(server, model):
    long = {"model": model, "messages": GREETING, "stream": True, "n": 4, "max_tokens": 300,
            "temperature": 0, "ignore_eos": True}
    quick = {"model": model, "messages": [{"role": "user", "content": "What is 17 + 25?"}],
             "temperature": 0, "max_tokens": 12}

    def ask(_):
        answer = httpx.post(server.url + "/v1/chat/completions", json=quick, timeout=60)
        return answer.json()["choices"][0]["message"]["content"]

    alone = ask(0)
    before = server.wait_idle()["pagoda_generation_tokens_total"]
    with contextlib.ExitStack() as stack:
        readers = []
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            # Little room on the way, so that most of the answer has to wait in the server.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", server.port))
            sock.settimeout(60)
            sock.sendall(request(long, "/v1/chat/completions", "Connection: close\r\n"))
            readers.append(sock)
        seen = [b""] * len(readers)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, number) for number in range(24)]
            while not all(one.done() for one in asked):
                for number, sock in enumerate(readers):
                    seen[number] += sock.recv(1)
                time.sleep(0.05)
            assert {one.result() for one in asked} == {alone}
        # Nothing waits for a reader: all is computed, and its blocks are free, before it is read.
        after = server.wait_idle(timeout_s=60)["pagoda_generation_tokens_total"]
        assert after - before >= len(readers) * 4 * 300
        assert all(len(part) < 5000 for part in seen), "read too fast to be slow"
        # And nothing is lost: half of them read on to the end, the others leave.
        for number, sock in enumerate(readers[:4]):
            while part := sock.recv(65536):
                seen[number] += part
            assert seen[number].count(b'"finish_reason":"length"') == 4
            assert seen[number].endswith(b"0\r\n\r\n") and b"[DONE]" in seen[number][-40:]
    server.wait_idle()


def test_a_reset_in_mid_stream_ends_the_request(server, model):
    before = server.wait_idle()["pagoda_generation_tokens_total"]
    body = {"model": model, "prompt": "1, 2,", "stream": True, "n": 8, "max_tokens": 1500,
            "ignore_eos": True, "temperature": 1}
    for number in range(24):
        with connect(server) as sock:
            # Closing sends RST at once, whatever is on its way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(request(body))
            if number % 2:
                assert sock.recv(64).startswith(b"HTTP/1.1 200")
    after = server.wait_idle()["pagoda_generation_tokens_total"]
    assert after - before < 24 * 8 * 1500 // 4, "it ran on after the client had left"


def test_halves_of_requests_that_never_end_hold_up_nobody(server, model):
    whole = request({"model": model, "prompt": "1, 2,", "max_tokens": 1})
    with contextlib.ExitStack() as stack:
        for number in range(400):
            sock = stack.enter_context(connect(server))
            sock.sendall(whole[: number % len(whole)])
        begun = server.metrics()
        answer = sdk(server).completions.create(model=model, prompt="1, 2,", max_tokens=4)
        assert answer.usage.completion_tokens >= 1
        assert begun["pagoda_requests_running"] == 0, "half a request was run"
    server.wait_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_pipeline_of_answers_comes_in_order(server, model, stream):
    # Token n of the vocabulary alone, so that each answer tells to which request it belongs.
    ids = list(range(40, 60))
    asked = b"".join(
        request({"model": model, "prompt": [one], "max_tokens": 1, "echo": True, "stream": stream,
                 "return_token_ids": True, "temperature": 0},
                more="Connection: close\r\n" if one == ids[-1] else "")
        for one in ids
    )
    with connect(server) as sock:
        sock.sendall(asked)
        data = b""
        while part := sock.recv(65536):
            data += part
    assert data.count(b"HTTP/1.1 200") == len(ids)
    places = [data.find(b'"prompt_token_ids":[%d]' % one) for one in ids]
    assert -1 not in places and places == sorted(places), places
