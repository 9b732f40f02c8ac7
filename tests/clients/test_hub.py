"""Models of the hub: the real binary against a hub on this machine that serves a small checkpoint."""

import concurrent.futures
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from conftest import sdk
from server import BINARY, Server
from test_lifecycle import GOLDENS, run, words_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_NeverToBeSeenAnywhere"
WEIGHTS = "model.safetensors"


# A certificate for 127.0.0.1 with its key, and the authority that signed it; made for these tests,
# good for a hundred years, and trusted by nobody else: the authority's key was thrown away.
TLS = pathlib.Path(__file__).with_name("tls")


class Hub:
    """Serves `tiny/qwen3` as the hub does; `stops_at` bytes of its weights it falls silent."""

    def __init__(self, tls=False):
        self.files = {p.name: p.read_bytes() for p in (GOLDENS / "qwen3").iterdir()}
        num_ids = json.loads(self.files["config.json"])["vocab_size"]
        self.files["tokenizer.json"] = words_tokenizer(num_ids).encode()
        self.files["pytorch_model.bin"] = b"never read"
        self.stops_at, self.goes_on = None, False
        self.asked = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.connections = 0
        accept = self.server.get_request

        def counted():
            socket, address = accept()
            self.connections += 1
            return socket, address

        self.server.get_request = counted
        self.server.handle_error = lambda *_: None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "server.pem")
            # Shakes hands in the request's own thread, where a client may leave.
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.endpoint = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_port}"
        self.released = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        path = request.path.split("?")[0]
        self.asked.append((path, {name.lower(): value for name, value in request.headers.items()}))
        name = path.rsplit("/", 1)[-1]
        if path == "/api/models/tiny/qwen3/revision/main":
            siblings = [self.sibling(name) for name in self.files]
            return self.send(request, 200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        if path != f"/tiny/qwen3/resolve/{COMMIT}/{name}" or name not in self.files:
            return self.send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        body, start = self.files[name], 0
        if "Range" in request.headers:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.send(request, 206 if start else 200, body[start:], headers, name == WEIGHTS)

    def sibling(self, name):
        body = self.files[name]
        head = b"blob %d\0" % len(body)
        sibling = {"rfilename": name, "size": len(body), "blobId": hashlib.sha1(head + body).hexdigest()}
        if name == WEIGHTS:
            sibling["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
        return sibling

    def send(self, request, status, body, headers=None, may_stop=False):
        request.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        with contextlib.suppress(ConnectionError):
            if may_stop and self.stops_at is not None:
                request.wfile.write(body[: self.stops_at])
                request.wfile.flush()
                self.released.wait()
                body = body[self.stops_at :] if self.goes_on else b""
            request.wfile.write(body)

    def weights_asked(self):
        return [headers for path, headers in self.asked if path.endswith(WEIGHTS)]


def environment(home, endpoint, **more):
    """What a process sees of the hub, and of no other cache."""
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH")
    return {**{name: "" for name in names}, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **more}


def complete(server):
    answer = sdk(server).completions.create(
        model="tiny/qwen3", prompt=[1, 2, 3], max_tokens=4, temperature=0,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage.completion_tokens == 4
    return answer.choices[0].text


def test_a_model_of_the_hub_answers_and_again_without_a_network(tmp_path):
    with Hub() as hub:
        env = environment(tmp_path, hub.endpoint, HF_TOKEN=TOKEN, PAGODA_LOG="trace")
        with Server("--model", "tiny/qwen3", env=env) as server:
            assert [entry.id for entry in sdk(server).models.list().data] == ["tiny/qwen3"]
            first = complete(server)
            said = server.output()
        assert TOKEN not in said and "downloading" in said
        assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, headers in hub.asked)
        assert not any(path.endswith(".bin") for path, _ in hub.asked)
        asked = len(hub.asked)
        with Server("--model", "tiny/qwen3", env={**env, "HF_HUB_OFFLINE": "1"}) as server:
            assert complete(server) == first
        assert len(hub.asked) == asked
    with Server("--model", "tiny/qwen3", env=env) as server:
        assert complete(server) == first, "nobody listens there any more"
        assert "what was downloaded earlier is used" in server.output()
    listed = run("models", "--json", env=env)
    (model,) = json.loads(listed.stdout)["models"]
    assert (model["id"], model["revisions"], model["usable"]) == ("tiny/qwen3", ["main"], True)
    weights = model["weight_bytes"]
    assert weights["q4_0"] < weights["q8_0"] < weights[model["dtype"]]
    assert "tiny/qwen3" in run("models", env=env).stdout


def sizes_of_parts(blobs):
    """Bytes of each part that is there; one that is whole meanwhile has another name."""
    sizes = []
    for part in blobs.glob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(part.stat().st_size)
    return sizes


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_was_ended_goes_on(tmp_path, how):
    half = len((GOLDENS / "qwen3" / WEIGHTS).read_bytes()) // 2
    with Hub() as hub:
        hub.stops_at = half
        env = environment(tmp_path, hub.endpoint)
        command = [str(BINARY), "--model", "tiny/qwen3", "--port", "0"]
        started = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        blobs = tmp_path / "hub/models--tiny--qwen3/blobs"
        deadline = time.monotonic() + 60
        while half not in sizes_of_parts(blobs):
            assert time.monotonic() < deadline and started.poll() is None
            time.sleep(0.02)
        started.send_signal(how)
        started.wait(timeout=30)
        said = run("models", env=env).stdout
        assert "incomplete: model.safetensors is missing" in said, said
        hub.stops_at = None
        with Server("--model", "tiny/qwen3", env=env) as server:
            complete(server)
        assert hub.weights_asked()[-1]["range"] == f"bytes={half}-"


def test_a_model_that_is_not_there_is_one_line_that_says_what_to_do(tmp_path):
    with Hub() as hub:
        tried = run("--model", "tiny/other", "--port", "0", env=environment(tmp_path, hub.endpoint))
    (line,) = [line for line in tried.stderr.splitlines() if line.startswith("pagoda: ")]
    assert tried.returncode == 1
    assert "tiny/other is no folder here" in line and "HF_TOKEN" in line
    env = environment(tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")
    tried = run("--model", "tiny/other", "--port", "0", env=env)
    assert "HF_HUB_OFFLINE" in tried.stderr and str(tmp_path) in tried.stderr


def test_a_folder_wins_over_the_hub(tmp_path):
    folder = tmp_path / "tiny" / "qwen3"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((GOLDENS / "qwen3" / "config.json").read_bytes())
    env = environment(tmp_path, "http://127.0.0.1:1")
    tried = subprocess.run(
        [str(BINARY), "--model", "tiny/qwen3", "--port", "0"], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, env={**os.environ, **env},
    )
    assert "is a folder here" in tried.stderr and "has no model.safetensors" in tried.stderr


def refusal(env):
    """The line with which a start ends."""
    tried = run("--model", "tiny/qwen3", "--port", "0", env=env)
    (line,) = [line for line in tried.stderr.splitlines() if line.startswith("pagoda: ")]
    assert tried.returncode == 1
    return line


def test_a_hub_is_asked_over_tls_if_its_certificate_is_trusted(tmp_path):
    with Hub(tls=True) as hub:
        env = environment(tmp_path, hub.endpoint, HF_TOKEN=TOKEN, SSL_CERT_FILE=str(TLS / "authority.pem"))
        with Server("--model", "tiny/qwen3", env=env) as server:
            complete(server)
        assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, headers in hub.asked)


@pytest.mark.parametrize("why", ["nobody vouches", "another host's", "no tls"])
def test_a_hub_that_nobody_vouches_for_is_told_at_once_and_gets_no_token(tmp_path, why):
    trusted = {} if why == "nobody vouches" else {"SSL_CERT_FILE": str(TLS / "authority.pem")}
    with Hub(tls=why != "no tls") as hub:
        endpoint = hub.endpoint.replace("http:", "https:")
        if why == "another host's":
            endpoint = endpoint.replace("127.0.0.1", "localhost")
        line = refusal(environment(tmp_path, endpoint, HF_TOKEN=TOKEN, **trusted))
        assert "cannot be trusted" in line and "SSL_CERT_FILE" in line, line
        assert not hub.asked and hub.connections == 1, "no use in a second try"


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of its own, if this machine lets us make one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_midway_ends_the_start_and_the_next_goes_on(tmp_path):
    size = (GOLDENS / "qwen3" / WEIGHTS).stat().st_size
    with small_disk(tmp_path / "disk", 2 * size + (1 << 20)) as disk, Hub() as hub:
        env = environment(disk, hub.endpoint)
        hub.stops_at, hub.goes_on = size // 2, True
        with concurrent.futures.ThreadPoolExecutor() as pool:
            told = pool.submit(refusal, env)
            blobs = disk / "hub/models--tiny--qwen3/blobs"
            deadline = time.monotonic() + 60
            while not any(part.stat().st_size == size // 2 for part in blobs.glob("*.incomplete")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # Somebody else takes what was free when it began.
            with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
                while True:
                    other.write(bytes(4096))
            # The rest comes on this connection.
            hub.released.set()
            line = told.result(timeout=60)
        assert "No space left" in line and "start again" in line and "HF_HOME" in line, line
        (disk / "other").unlink()
        hub.stops_at = None
        with Server("--model", "tiny/qwen3", env=env) as server:
            complete(server)
        assert hub.weights_asked()[-1]["range"].startswith("bytes=")


def test_a_cache_serves_soon_while_nobody_answers(tmp_path):
    with Hub() as hub:
        env = environment(tmp_path, hub.endpoint)
        with Server("--model", "tiny/qwen3", env=env) as server:
            first = complete(server)
    # It takes connections, and says nothing on any.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Server("--model", "tiny/qwen3", env=env) as server:
            assert complete(server) == first
            assert "what was downloaded earlier is used" in server.output()
        silent.settimeout(0)
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()
