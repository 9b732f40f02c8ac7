"""Starting, a taken port, draining, settings that make no sense, and `--help`."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from conftest import sdk
from server import BINARY, Server


def run(*flags, env=None):
    return subprocess.run(
        [str(BINARY), *flags], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        env={**os.environ, **(env or {})},
    )


def test_a_start_says_what_to_try_and_what_fits():
    with Server() as server:
        said = server.output()
        assert "curl" in said and server.url in said
        assert "KV" in said or "kv" in said


def test_a_second_start_on_the_port_says_so_in_one_line(server):
    second = run("--port", str(server.port))
    assert second.returncode != 0
    lines = [line for line in (second.stdout + second.stderr).splitlines() if line.strip()]
    assert len(lines) == 1 and str(server.port) in lines[0], lines


def test_a_server_takes_the_open_files_that_it_may_and_outlives_their_end():
    with Server(open_files=(64, 600)) as server:
        assert "fewer files may be open" in server.output()
        address = ("127.0.0.1", server.port)
        with contextlib.ExitStack() as held:
            socks = [held.enter_context(socket.create_connection(address, timeout=30)) for _ in range(150)]
            for sock in socks:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert all(b" 200 " in sock.recv(4096) for sock in socks), "more than the soft limit"
            more = [held.enter_context(socket.create_connection(address, timeout=30)) for _ in range(200)]
            deadline = time.monotonic() + 30
            while "cannot accept" not in server.output():
                assert time.monotonic() < deadline, "it never ran out of files"
                time.sleep(0.05)
            assert len(more) == 200
        assert httpx.get(server.url + "/health", timeout=30).status_code == 200
        assert server.output().count("cannot accept") < 5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_stops_cleanly(how):
    with Server() as server:
        begun = time.monotonic()
        assert server.stop(how) == 0
        assert time.monotonic() - begun < 10


def test_sigterm_drains():
    with Server() as server:
        client = sdk(server)
        stream = client.completions.create(
            model="default", prompt="1, 2,", max_tokens=300, stream=True, temperature=0,
            extra_body={"ignore_eos": True}, stream_options={"include_usage": True},
        )
        chunks = iter(stream)
        next(chunks)
        ready = []

        def watch():
            # /ready says no while the running request ends.
            for _ in range(200):
                try:
                    ready.append(httpx.get(server.url + "/ready").status_code)
                except httpx.TransportError:
                    ready.append(0)
                    return
                time.sleep(0.005)

        watcher = threading.Thread(target=watch)
        server.process.send_signal(signal.SIGTERM)
        watcher.start()
        last = None
        for last in chunks:
            pass
        watcher.join()
        assert last.usage.completion_tokens == 300, "a running request was cut off"
        assert server.process.wait(timeout=60) == 0
        # Some looks may come before the signal does; after the first no there is never a yes.
        refused = next(index for index, status in enumerate(ready) if status != 200)
        assert set(ready[refused:]) <= {503, 0}, ready


def test_help_is_for_people():
    text = run("--help").stdout
    for flag in ("--model", "--max-model-len", "--max-num-seqs", "--port", "--api-key", "--dtype"):
        assert flag in text
    assert "http://127.0.0.1:8000" in text
    assert run("--version").returncode == 0


@pytest.mark.parametrize(
    "flags",
    [("--dtype", "int3"), ("--max-model-len", "0"), ("--block-size", "17"), ("--no-such-flag",),
     ("--model", "/no/such/folder"), ("--config", "/no/such/file"), ("--device", "tpu")],
)
def test_a_setting_without_sense_is_one_clear_error(flags):
    tried = run(*flags, "--port", "0")
    said = tried.stdout + tried.stderr
    assert tried.returncode != 0
    assert any(part.lstrip("-") in said for part in flags), said
    assert "panicked" not in said


def test_a_settings_file_and_flags_over_it(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('max-model-len = 64\nserved-model-name = ["from-file"]\n')
    with Server("--config", file, "--served-model-name", "from-flag") as server:
        entry = sdk(server).models.list().data[0]
        assert (entry.id, entry.model_extra["max_model_len"]) == ("from-flag", 64)


GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def words_tokenizer(num_ids):
    """A tokenizer for a checkpoint that has none: token n is the word "tn"."""
    vocab = {f"t{n}": n for n in range(num_ids)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    return json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model})


@pytest.mark.parametrize("case", ["llama2", "qwen2", "qwen3"])
def test_a_checkpoint_folder_scores_a_prompt_as_transformers_does(tmp_path, case):
    folder = tmp_path / case
    folder.mkdir()
    for path in (GOLDENS / case).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    num_ids = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "tokenizer.json").write_text(words_tokenizer(num_ids))
    golden = json.loads((folder / "golden.json").read_text())
    length = 300
    with Server("--model", folder, "--dtype", "f32", "--kv-cache-dtype", "f32") as server:
        client = sdk(server)
        assert client.models.list().data[0].id == case
        answer = client.completions.create(
            model=case, prompt=golden["tokens"][:length], echo=True, logprobs=1, max_tokens=0
        )
    scored = answer.choices[0].logprobs.token_logprobs[1:]
    assert len(scored) == length - 1
    gaps = [abs(a - b) for a, b in zip(scored, golden["target_logprobs"])]
    assert max(gaps) <= 0.001, max(gaps)


def test_random_weights_serve_any_config(tmp_path):
    config = (GOLDENS / "qwen2" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with Server("--model", tmp_path, "--load-format", "dummy") as server:
        answer = sdk(server).completions.create(
            model="default", prompt="any text", max_tokens=4, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == 4


def test_a_folder_without_a_tokenizer_is_refused_before_its_weights_are_read(tmp_path):
    for path in (GOLDENS / "qwen3").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tried = run("--model", str(tmp_path), "--port", "0", "--kv-cache-memory-bytes", "1")
    # A KV cache of one byte is refused once weights are packed: that it is not told shows the order.
    said = (tried.stdout + tried.stderr).splitlines()[-1]
    assert tried.returncode == 1
    assert said == (
        f"pagoda: cannot use {tmp_path}: tokenizer.json is missing, and so are "
        "tokenizer.model and any *.tiktoken"
    ), said


def test_an_impossible_cache_says_which_setting_to_change():
    tried = run("--port", "0", "--kv-cache-memory-bytes", "100")
    said = (tried.stdout + tried.stderr).splitlines()[-1]
    assert tried.returncode == 1
    assert "room for 100 bytes" in said and "raise kv-cache-memory-bytes" in said, said


def test_a_damaged_checkpoint_names_file_and_reason(tmp_path):
    for path in (GOLDENS / "qwen3").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    tried = run("--model", str(tmp_path), "--port", "0")
    said = tried.stdout + tried.stderr
    assert tried.returncode != 0 and "model.safetensors" in said and "panicked" not in said
