"""Faults put into a model: in its files they end the start with a line, in its numbers one request.

Never a hang, never a panic, and nobody else's answer changes."""

import concurrent.futures
import json
import math
import os
import struct
import time

import httpx
import pytest

from server import Server
from test_causes import checkpoint
from test_lifecycle import run

NAN = struct.pack("<H", 0x7FC0)
INFINITY = struct.pack("<H", 0x7F80)
WEIGHTS = "model.safetensors"


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def remove(path):
    path.unlink()


def dangle(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def loop(path):
    path.unlink()
    path.symlink_to(path)


def folder_instead(path):
    path.unlink()
    path.mkdir()


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def half_of_the_shards(path):
    names = header(path)[0]
    shards = ["model-1.safetensors", "model-2.safetensors"]
    listed = {name: shards[number % 2] for number, name in enumerate(names) if name != "__metadata__"}
    path.rename(path.with_name(shards[0]))
    path.with_name(WEIGHTS + ".index.json").write_text(json.dumps({"weight_map": listed}))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", WEIGHTS])
@pytest.mark.parametrize(
    "fault", [remove, cut(0), cut(0.00001), cut(0.3), cut(0.9), dangle, loop, folder_instead, fifo, zeros],
    ids=["removed", "empty", "four bytes", "a third", "most", "dangling", "loop", "folder", "fifo", "zeros"],
)
def test_a_fault_in_a_file_ends_the_start_with_a_line_that_names_it(tmp_path, file, fault):
    folder = checkpoint(tmp_path / "m")
    fault(folder / file)
    refused(folder, file)


def test_a_missing_shard_is_named(tmp_path):
    folder = checkpoint(tmp_path / "m")
    half_of_the_shards(folder / WEIGHTS)
    refused(folder, "model-2.safetensors")


def refused(folder, file):
    tried = run("--model", str(folder), "--port", "0")
    said = (tried.stdout + tried.stderr).splitlines()
    assert tried.returncode == 1 and said, said
    assert file in said[-1] and said[-1].startswith("pagoda: "), said
    assert not any("panicked" in line for line in said), said


def header(path):
    """What a file of weights says of its tensors, and where their bytes begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def spoil(path, tensor, value, first=0, num=None):
    """Overwrites elements of a bf16 tensor."""
    entries, start = header(path)
    begin, end = entries[tensor]["data_offsets"]
    assert entries[tensor]["dtype"] == "BF16"
    num = (end - begin) // 2 - first if num is None else num
    with path.open("r+b") as file:
        file.seek(start + begin + 2 * first)
        file.write(value * num)


def serve(folder):
    # So few blocks that everybody's are used again by others.
    return Server("--model", folder, "--served-model-name", "m", "--kv-cache-memory-bytes", "512KiB",
                  "--max-model-len", 256, "--max-num-seqs", 4)


def complete(server, prompt, **more):
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "length"
    return choice


@pytest.mark.parametrize("value", [NAN, INFINITY], ids=["nan", "infinity"])
@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.0.self_attn.v_proj.weight"])
def test_a_model_of_broken_numbers_ends_each_request_in_shape(tmp_path, tensor, value):
    folder = checkpoint(tmp_path / "m")
    spoil(folder / WEIGHTS, tensor, value)
    with serve(folder) as server:
        for more in ({}, {"temperature": 1, "seed": 1}, {"logprobs": 3}, {"echo": True, "logprobs": 1}):
            choice = complete(server, "t7 t8 t9", **more)
            assert "NaN" not in json.dumps(choice) and "Infinity" not in json.dumps(choice)
        server.wait_idle()
        assert "panicked" not in server.output()
        assert server.stop() == 0


def test_a_prompt_of_broken_numbers_changes_nobody_else_s_answer(tmp_path):
    sound, broken = checkpoint(tmp_path / "sound"), checkpoint(tmp_path / "broken")
    prompts = [[40 + number, 50, 60 + number, 70] * (3 + 7 * number) for number in range(6)]
    with serve(sound) as server:
        wanted = [complete(server, prompt)["text"] for prompt in prompts]
    config = json.loads((broken / "config.json").read_text())
    unused = next(
        token for token in range(100, config["vocab_size"])
        if not any(f"t{token}" in text.split() for text in wanted)
    )
    hidden = config["hidden_size"]
    spoil(broken / WEIGHTS, "model.embed_tokens.weight", NAN, unused * hidden, hidden)
    with serve(broken) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        for round_ in range(4):
            spoilt = [pool.submit(complete, server, [unused] * (5 + 30 * round_ + n)) for n in range(6)]
            whole = [pool.submit(complete, server, prompt, cache_salt=str(round_)) for prompt in prompts]
            assert [one.result()["text"] for one in whole] == wanted
            assert all(one.result() for one in spoilt)
        server.wait_idle()
        # Blocks that held the broken numbers are others' by now.
        assert [complete(server, prompt, cache_salt="last")["text"] for prompt in prompts] == wanted
        assert "panicked" not in server.output()


LAYERS, INTERMEDIATE = 20, 1 << 16


def large_checkpoint(folder):
    """A model of 600 MB of zeros, which its file system need not store."""
    checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "intermediate_size": INTERMEDIATE}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, head = config["hidden_size"], header(folder / WEIGHTS)[0]
    head.pop("__metadata__", None)
    of_layer = {name: entry for name, entry in head.items() if ".layers.0." in name}
    shapes = {name: entry["shape"] for name, entry in head.items() if ".layers." not in name}
    for layer in range(LAYERS):
        for name, entry in of_layer.items():
            wide = {"gate_proj": [INTERMEDIATE, hidden], "up_proj": [INTERMEDIATE, hidden],
                    "down_proj": [hidden, INTERMEDIATE]}
            shape = wide.get(name.split(".")[-2], entry["shape"])
            shapes[name.replace(".layers.0.", f".layers.{layer}.")] = shape
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_a_file_that_is_cut_while_it_loads_costs_that_load_alone(tmp_path):
    folder = large_checkpoint(tmp_path / "large")
    admin = {"Authorization": "Bearer key"}
    options = {"kv-cache-memory-bytes": "8MiB", "max-model-len": 64, "max-num-seqs": 2}
    with Server("--admin-key", "key", "--models-dir", tmp_path) as server:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            body = {"name": "large", "path": "large", "options": options}
            load = pool.submit(
                httpx.post, server.url + "/admin/models", json=body, headers=admin, timeout=120
            )
            while "loading model=\"large\"" not in server.output():
                assert not load.done(), load.result().text
                time.sleep(0.001)
            os.truncate(folder / WEIGHTS, 1 << 20)
            answer = load.result()
        assert answer.status_code == 422, answer.text
        assert "to 1048576 bytes while it was read" in answer.json()["error"]["message"]
        # The model beside it serves on.
        assert complete(server, "1 + 1 =")
        assert "panicked" not in server.output()
        assert server.stop() == 0
