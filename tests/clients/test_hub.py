"""Models of the hub: the real binary against a hub on this machine that serves a small checkpoint."""

import contextlib
import hashlib
import http.server
import json
import os
import signal
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


class Hub:
    """Serves `tiny/qwen3` as the hub does; `stops_at` bytes of its weights it falls silent."""

    def __init__(self):
        self.files = {p.name: p.read_bytes() for p in (GOLDENS / "qwen3").iterdir()}
        num_ids = json.loads(self.files["config.json"])["vocab_size"]
        self.files["tokenizer.json"] = words_tokenizer(num_ids).encode()
        self.files["pytorch_model.bin"] = b"never read"
        self.stops_at = None
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
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
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
                return
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
        while not any(part.stat().st_size == half for part in blobs.glob("*.incomplete")):
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
