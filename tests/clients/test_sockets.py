"""Raw sockets: what no well-behaved client sends. The server answers or closes, and lives on."""

import contextlib
import json
import socket
import time

import h2.connection
import h2.errors
import h2.events
import httpx
import pytest

from test_errors import assert_shape

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_all(sock):
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


@pytest.fixture(autouse=True)
def lives_on(server):
    yield
    server.wait_idle()
    assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages":', b"[" * 100_000, b'{"a":"\\ud800"}',
     b'{"messages": [{"role": "user", "content": "x"}], "n": 1e400}'],
)
def test_broken_json_is_a_bad_request(server, body):
    answer = httpx.post(
        server.url + "/v1/chat/completions", content=body,
        headers={"Content-Type": "application/json"},
    )
    error = assert_shape(answer, 400)
    assert error["type"] == "invalid_request_error"


def test_a_body_of_another_kind(server):
    answer = httpx.post(server.url + "/v1/completions", data={"prompt": "x"})
    assert_shape(answer, 415)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/nowhere", "/v1/chat/completions/", "/v1//models", "/v1/models/../models",
             "/%2e%2e/etc/passwd", "/v1/embeddings"],
)
def test_unknown_routes(server, path):
    with connect(server) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, body = read_all(sock).split(b"\r\n\r\n", 1)
    assert b" 404 " in head.split(b"\r\n")[0], head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_wrong_methods_name_the_right_ones(server):
    for method, path in (("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("POST", "/health")):
        answer = httpx.request(method, server.url + path)
        assert_shape(answer, 405)
        assert answer.headers["allow"]


def test_a_huge_body_is_refused_and_the_answer_is_seen(server):
    body = b'{"prompt": "' + b"x" * (24 << 20) + b'"}'
    answer = httpx.post(
        server.url + "/v1/completions", content=body, headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert_shape(answer, 413)


def test_a_huge_body_in_chunks_is_refused(server):
    def chunks():
        yield b'{"prompt": "'
        for _ in range(300):
            yield b"x" * (100 << 10)

    answer = httpx.post(
        server.url + "/v1/completions", content=chunks(),
        headers={"Content-Type": "application/json"}, timeout=60,
    )
    assert_shape(answer, 413)


def test_a_body_that_comes_byte_by_byte(server, model):
    body = json.dumps({"model": model, "prompt": "1, 2,", "max_tokens": 1}).encode()
    with connect(server) as sock:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" \
               f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode())
        for byte in body:
            sock.sendall(bytes([byte]))
            time.sleep(0.002)
        assert b" 200 " in read_all(sock).split(b"\r\n")[0]


def test_a_client_that_goes_silent_holds_up_nobody(server):
    silent = []
    for request in (b"", b"POST /v1/comple", (HEAD + "Content-Length: 100\r\n\r\n{").encode()):
        sock = connect(server)
        sock.sendall(request)
        silent.append(sock)
    assert httpx.get(server.url + "/v1/models").status_code == 200
    for sock in silent:
        sock.close()


def test_a_half_closed_client_has_left(server):
    body = b'{"messages": [{"role": "user", "content": "Hello!"}], "stream": true, ' \
           b'"n": 8, "ignore_eos": true}'
    with connect(server) as sock:
        sock.sendall((HEAD + f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
        assert sock.recv(64).startswith(b"HTTP/1.1 200")
        sock.shutdown(socket.SHUT_WR)
        server.wait_idle()


def test_broken_requests_are_answered_or_closed(server):
    for request in (
        b"\r\n\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00" * 20, b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        with connect(server) as sock:
            # The server may have answered and closed before it has read all.
            with contextlib.suppress(OSError):
                sock.sendall(request)
                sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
            assert not answer.startswith(b"HTTP/1.1 200"), request


def test_floods_of_headers_are_refused(server):
    many = "".join(f"X-{n}: y\r\n" for n in range(5000))
    large = f"X-Large: {'y' * (1 << 20)}\r\n"
    for headers in (many, large):
        with connect(server) as sock:
            try:
                sock.sendall(f"GET /health HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
            except (BrokenPipeError, ConnectionResetError):
                continue
            assert not read_all(sock).startswith(b"HTTP/1.1 200")


def test_requests_in_a_pipeline_are_answered_in_order(server):
    with connect(server) as sock:
        one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        sock.sendall(one * 3 + last)
        assert read_all(sock).count(b"HTTP/1.1 200") == 4


def test_http2_streams_and_answers(server, model):
    ask = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
    with httpx.Client(http2=True, http1=False, base_url=server.url, timeout=60) as client:
        answer = client.post("/v1/chat/completions", json=ask)
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
        whole = answer.json()["choices"][0]["message"]["content"]
        text = ""
        with client.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content") or ""
        assert text == whole
        assert_shape(client.post("/v1/chat/completions", json={"messages": 3}), 400)


def test_http2_reset_of_a_stream_cancels_it_alone(server, model):
    """By hand: httpx leaves a stream without telling the server."""
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True, "n": 8,
        "ignore_eos": True,
    }).encode()
    peer = h2.connection.H2Connection()
    with connect(server) as sock:
        def request(method, path, body=b""):
            stream = peer.get_next_available_stream_id()
            head = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path),
                    ("content-type", "application/json")]
            peer.send_headers(stream, head, end_stream=not body)
            if body:
                peer.send_data(stream, body, end_stream=True)
            sock.sendall(peer.data_to_send())
            return stream

        def wait_for(stream, kind):
            while True:
                for event in peer.receive_data(sock.recv(65536)):
                    if isinstance(event, kind) and event.stream_id == stream:
                        return event
                sock.sendall(peer.data_to_send())

        peer.initiate_connection()
        asked = request("POST", "/v1/chat/completions", body)
        wait_for(asked, h2.events.DataReceived)
        peer.reset_stream(asked, h2.errors.ErrorCodes.CANCEL)
        sock.sendall(peer.data_to_send())
        server.wait_idle()
        models = request("GET", "/v1/models")
        status = dict(wait_for(models, h2.events.ResponseReceived).headers)
        assert {bytes(k): bytes(v) for k, v in status.items()}[b":status"] == b"200"
