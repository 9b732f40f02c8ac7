"""Several models in one process: served side by side, loaded, replaced and unloaded while others work."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import httpx
import openai
import pytest

from conftest import sdk
from server import Server
from test_lifecycle import GOLDENS, run, words_tokenizer
from test_memory import CONFIG as LARGER_CONFIG

ADMIN = {"Authorization": "Bearer ak-operator"}
SMALL = ("--max-num-seqs", 4, "--max-num-batched-tokens", 64, "--kv-cache-memory-bytes", "16MiB")


def checkpoint(parent, name, case):
    """A golden's checkpoint with a tokenizer, as a folder of `parent`."""
    folder = parent / name
    folder.mkdir(parents=True)
    for path in (GOLDENS / case).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    num_ids = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "tokenizer.json").write_text(words_tokenizer(num_ids))
    return folder


@pytest.fixture
def models_dir(tmp_path):
    parent = tmp_path / "models"
    checkpoint(parent, "alpha", "llama2")
    checkpoint(parent, "org/beta", "qwen3")
    return parent


@contextlib.contextmanager
def operated(models_dir, *flags):
    """A server whose models may be changed."""
    flags = ("--admin-key", "ak-operator", "--models-dir", models_dir, *SMALL, *flags)
    with Server(*flags) as server:
        yield server


def admin(server, method, path="", timeout=120, **options):
    return httpx.request(
        method, f"{server.url}/admin/models{path}", headers=ADMIN, timeout=timeout, **options
    )


def load(server, name, path, **options):
    return admin(server, "POST", json={"name": name, "path": path, "options": options})


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def served(server):
    return [entry.id for entry in sdk(server).models.list().data]


def golden(case):
    return json.loads((GOLDENS / case / "golden.json").read_text())


def gap_to_golden(server, model, case, length=200):
    """Largest distance of a prompt's log-probabilities from the golden's."""
    values = golden(case)
    answer = sdk(server).completions.create(
        model=model, prompt=values["tokens"][:length], echo=True, logprobs=1, max_tokens=0
    )
    scored = answer.choices[0].logprobs.token_logprobs[1:]
    assert len(scored) == length - 1
    return max(abs(a - b) for a, b in zip(scored, values["target_logprobs"]))


def greedy(model, tokens, **more):
    return {"model": model, "prompt": "1, 2,", "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "logprobs": 3, "stream": True, **more}


def stream(server, body, on_first=None):
    """What a stream tells, however it is cut into chunks: text, tokens, log-probabilities, its end."""
    seen = {"text": "", "tokens": [], "logprobs": [], "top": [], "finish_reason": None}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return seen, chunk["error"]
            for choice in chunk["choices"]:
                seen["text"] += choice["text"]
                logprobs = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
                seen["tokens"] += logprobs["tokens"]
                seen["logprobs"] += logprobs["token_logprobs"]
                seen["top"] += logprobs["top_logprobs"]
                seen["finish_reason"] = choice["finish_reason"] or seen["finish_reason"]
            if on_first is not None:
                on_first()
                on_first = None
    return seen, None


def test_models_named_at_start_are_served_side_by_side(models_dir):
    f32 = ("--dtype", "f32", "--kv-cache-dtype", "f32")
    flags = ("--model", f"a={models_dir}/alpha,max-model-len=400", "--model", models_dir / "org/beta",
             "--model", "demo=builtin,quantization=q8_0", *f32)
    with Server(*flags, "--max-num-seqs", 2) as server:
        client = sdk(server)
        entries = client.models.list().data
        lengths = {entry.id: entry.model_extra["max_model_len"] for entry in entries}
        assert list(lengths) == ["a", "beta", "demo"] and lengths["a"] == 400
        assert gap_to_golden(server, "a", "llama2") <= 0.001
        assert gap_to_golden(server, "beta", "qwen3") <= 0.001
        said = client.chat.completions.create(
            model="demo", temperature=0, messages=[{"role": "user", "content": "What is 17 + 25?"}]
        )
        assert said.model == "demo" and "42" in said.choices[0].message.content
        first = client.completions.create(model="default", prompt="t1", max_tokens=1)
        assert first.model == "a", "who names none gets the first"
        with pytest.raises(openai.NotFoundError) as error:
            client.completions.create(model="no-such-model", prompt="t1", max_tokens=1)
        assert error.value.code == "model_not_found"
        text = httpx.get(server.url + "/metrics").text
        for name in lengths:
            line = f'pagoda_requests_running{{model_name="{name}",engine="0"}} 0'
            assert line in text, name
        told = server.output()
        assert all(f"served as   {name}" in told for name in lengths)
        assert httpx.get(server.url + "/admin/models", headers=ADMIN).status_code == 404


@pytest.mark.parametrize(
    "flags, told",
    [(("--model", "/x/same", "--model", "/y/same"), "two are called same"),
     (("--model", "a=builtin,port=3"), "port is no option"),
     (("--model", "a=builtin", "--model", "b=/no/such/folder"), "/no/such/folder"),
     (("--model", "a=builtin", "--model", "b=builtin", "--served-model-name", "c"), "served-model-name"),
     (("--admin-key", "k", "--api-key", "k"), "admin-key")],
)
def test_a_start_that_cannot_be_is_one_line(flags, told):
    tried = run(*flags, "--port", "0")
    said = (tried.stdout + tried.stderr).splitlines()[-1]
    assert tried.returncode in (1, 2) and said.startswith("pagoda: ") and told in said, said


def test_only_an_admin_key_opens_the_admin_surface(models_dir):
    with operated(models_dir, "--api-key", "sk-user") as server:
        for method, path in [("GET", ""), ("POST", ""), ("GET", "/x"), ("PUT", "/x"), ("DELETE", "/x")]:
            at = f"{server.url}/admin/models{path}"
            assert code(httpx.request(method, at)) == (401, None), method
            for wrong in ("sk-user", "ak-operato", "ak-operator2"):
                refused = httpx.request(method, at, headers={"Authorization": f"Bearer {wrong}"})
                assert refused.status_code == 401, (method, wrong)
        assert httpx.get(server.url + "/v1/models", headers=ADMIN).status_code == 401
        assert admin(server, "GET").status_code == 200
        assert admin(server, "PATCH").status_code == 405
        assert "ak-operator" not in server.output()


def test_a_model_comes_and_goes(models_dir):
    with operated(models_dir) as server:
        came = load(server, "org/beta", "org/beta", dtype="f32", **{"kv-cache-dtype": "f32"})
        assert came.status_code == 201, came.text
        told = came.json()
        assert (told["name"], told["state"], told["dtype"]) == ("org/beta", "serving", "f32")
        parts = told["memory"]
        assert parts["total_bytes"] == sum(parts.values()) - parts["total_bytes"] > 0
        assert served(server) == ["pagoda-demo", "org/beta"]
        assert gap_to_golden(server, "org/beta", "qwen3") <= 0.001
        assert admin(server, "GET", "/org%2Fbeta").json()["memory"] == parts
        everything = admin(server, "GET").json()
        held = sum(model["memory"]["total_bytes"] for model in everything["models"])
        assert everything["memory"]["promised_bytes"] == held < everything["memory"]["allowed_bytes"]
        assert code(load(server, "org/beta", "alpha")) == (409, "model_exists")
        gone = admin(server, "DELETE", "/org%2Fbeta")
        assert gone.status_code == 200, gone.text
        assert (gone.json()["cut_off"], gone.json()["freed_bytes"]) == (0, parts["total_bytes"])
        assert served(server) == ["pagoda-demo"]
        assert code(admin(server, "GET", "/org%2Fbeta")) == (404, "model_not_found")
        assert code(admin(server, "DELETE", "/org%2Fbeta")) == (404, "model_not_found")
        held = everything["models"][0]["memory"]["total_bytes"]
        assert admin(server, "GET").json()["memory"]["promised_bytes"] == held
        # The last one may go, too: the process then waits for another.
        assert admin(server, "DELETE", "/pagoda-demo").status_code == 200
        ready = httpx.get(server.url + "/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "empty")
        assert httpx.get(server.url + "/health").status_code == 200
        assert code(httpx.post(server.url + "/v1/completions", json={"prompt": "x"}))[0] == 404
        assert load(server, "again", "builtin").status_code == 201
        assert httpx.get(server.url + "/ready").status_code == 200


def test_a_load_that_fails_leaves_all_as_it_was(models_dir, tmp_path):
    damaged = checkpoint(models_dir, "damaged", "qwen3") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    huge = models_dir / "huge"
    huge.mkdir()
    size = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 400,
            "num_attention_heads": 128, "num_key_value_heads": 8}
    (huge / "config.json").write_text(json.dumps({**LARGER_CONFIG, **size}))
    checkpoint(tmp_path, "outside", "llama2")
    (models_dir / "link").symlink_to(tmp_path / "outside")
    with operated(models_dir) as server:
        before = admin(server, "GET").json()
        of_cache = {"load-format": "dummy", "kv-cache-memory-bytes": "8GiB"}
        refused = load(server, "huge", "huge", **of_cache)
        assert code(refused) == (507, "insufficient_memory")
        message = refused.json()["error"]["message"]
        assert "GiB at least (weights" in message and "there is room for" in message, message
        assert "the others hold" in message, message
        refused = load(server, "x", "damaged")
        assert code(refused) == (422, "model_load_failed")
        assert "model.safetensors" in refused.json()["error"]["message"]
        for path in ("../outside", "/etc", "link", "", "no-such", "org/../../outside", str(tmp_path)):
            refused = load(server, "x", path)
            assert refused.status_code in (400, 403), path
            assert str(tmp_path) not in refused.text, "what lies outside is not told"
        for body in ({}, {"name": "x"}, {"name": "x y", "path": "alpha"}, {"name": "x", "path": "alpha", "n": 1},
                     {"name": "x", "path": "alpha", "options": {"quantization": "q3"}},
                     {"name": "x", "path": "alpha", "options": {"api-key": "k"}},
                     {"name": "x", "path": "alpha", "options": {"chat-template": "/etc/passwd"}}):
            refused = admin(server, "POST", json=body)
            assert refused.status_code == 400, refused.text
        refused = admin(server, "PUT", "/pagoda-demo", json={"path": "damaged"})
        assert code(refused) == (422, "model_load_failed")
        after = admin(server, "GET").json()
        assert after == before
        assert sdk(server).completions.create(model="pagoda-demo", prompt="1,", max_tokens=1)


def test_loads_that_fail_again_and_again_leave_nothing_behind(models_dir):
    config = checkpoint(models_dir, "damaged", "qwen3") / "config.json"
    # Found when all but the last layer are packed.
    layers = json.loads(config.read_text())
    layers.update(num_hidden_layers=layers["num_hidden_layers"] + 1, layer_types=None)
    config.write_text(json.dumps(layers))
    with operated(models_dir) as server:
        fails = lambda: code(load(server, "x", "damaged"))  # noqa: E731
        assert fails() == (422, "model_load_failed")
        before, threads = resident(server)
        lines = lambda: len(httpx.get(server.url + "/metrics").text.splitlines())  # noqa: E731
        lines()  # counts itself, too
        had = lines()
        assert {fails() for _ in range(60)} == {(422, "model_load_failed")}
        after = resident(server)
        # One connection's thread may come with the first of them.
        assert after[0] - before < 4 << 20 and after[1] <= threads + 1, (before, threads, after)
        assert lines() == had


def test_a_link_of_a_models_files_leads_nowhere_else(models_dir, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    folder = checkpoint(models_dir, "linked", "llama2")
    with operated(models_dir) as server:
        (folder / "config.json").rename(models_dir / "shared.json")
        (folder / "config.json").symlink_to("../shared.json")
        assert load(server, "a", "linked").status_code == 201, "as in a cache of the hub"
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
        refused = load(server, "b", "linked")
        assert code(refused) == (403, "path_not_allowed") and "link" in refused.text, refused.text
        assert str(tmp_path) not in refused.text


def test_what_was_computed_for_one_model_is_never_anothers(models_dir):
    f32 = {"dtype": "f32", "kv-cache-dtype": "f32"}
    body = {"prompt": golden("llama2")["tokens"][:150], "max_tokens": 12, "temperature": 0, "logprobs": 5}

    def ask(server, model):
        answer = httpx.post(server.url + "/v1/completions", json={"model": model, **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        answer = answer.json()
        return answer["choices"][0], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with operated(models_dir) as server:
        assert load(server, "a", "alpha", **f32).status_code == 201
        assert load(server, "b", "org/beta", **f32).status_code == 201
        (first, none), (other, none_of_another) = ask(server, "a"), ask(server, "b")
        again, cached = ask(server, "a")
        assert (none, none_of_another) == (0, 0) and cached > 100
        assert again == first and other["logprobs"] != first["logprobs"]
        # Other weights under the same name, and those of before again.
        for path, expected in (("org/beta", other), ("alpha", first)):
            swap = {"path": path, "options": f32, "drain_timeout": 0}
            assert admin(server, "PUT", "/a", json=swap).status_code == 200
            answer, cached = ask(server, "a")
            assert answer == expected and cached == 0


def test_a_load_goes_on_alone_and_ends_with_the_process(models_dir):
    larger = models_dir / "larger"
    larger.mkdir()
    (larger / "config.json").write_text(json.dumps({**LARGER_CONFIG, "num_hidden_layers": 6}))
    wanted = {"name": "x", "path": "larger", "options": {"load-format": "dummy"}}
    with operated(models_dir) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        with pytest.raises(httpx.TimeoutException):
            admin(server, "POST", json=wanted, timeout=0.05)
        changing = lambda: admin(server, "GET").json()["changing"]  # noqa: E731
        assert changing() == [{"name": "x", "state": "loading"}]
        for method in ("PUT", "DELETE"):
            taken = admin(server, method, "/x", json={"path": "alpha"} if method == "PUT" else None)
            assert code(taken) == (409, "model_changing") and taken.headers["retry-after"] == "1"
        body = {"model": "x", "prompt": [5], "max_tokens": 1}
        early = httpx.post(server.url + "/v1/completions", json=body)
        assert code(early) == (503, "model_loading") and early.headers["retry-after"] == "5"
        deadline = time.monotonic() + 60
        while changing():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert served(server) == ["pagoda-demo", "x"], "nobody waited for it"
        told = pool.submit(lambda: admin(server, "POST", json={**wanted, "name": "y"}))
        while not changing():
            assert not told.done()
        server.process.send_signal(signal.SIGTERM)
        assert code(told.result()) == (503, "shutting_down")
        assert server.process.wait(timeout=20) == 0


def test_a_stream_is_the_same_while_others_come_and_go(models_dir):
    with operated(models_dir, "--model", "builtin", "--model", f"b={models_dir}/org/beta") as server:
        body = greedy("pagoda-demo", 1500)
        alone, error = stream(server, body)
        assert error is None and len(alone["tokens"]) == 1500
        rounds, ended = [], threading.Event()
        begun = threading.Event()

        def come_and_go():
            begun.wait()
            while not ended.is_set() or not rounds:
                assert load(server, "c", "alpha", quantization="q4_0").status_code == 201
                other, error = stream(server, greedy("c", 8))
                assert error is None and len(other["tokens"]) == 8
                assert admin(server, "DELETE", "/c").status_code == 200
                rounds.append(other)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            changes = pool.submit(come_and_go)
            beside = pool.submit(lambda: stream(server, greedy("b", 400)))
            fresh = {**body, "cache_salt": "nothing shared"}
            seen, error = stream(server, fresh, on_first=begun.set)
            ended.set()
            changes.result()
            assert beside.result()[1] is None
        assert error is None and seen == alone and rounds
        server.wait_idle()


def test_of_two_who_load_one_name_one_wins(models_dir):
    with operated(models_dir) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: load(server, "a", "alpha"), range(8)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [201] + [409] * 7, codes
        assert {code(answer)[1] for answer in answers if answer.status_code == 409} <= {
            "model_exists", "model_changing"}
        assert served(server) == ["pagoda-demo", "a"]
        others = list(pool.map(lambda n: load(server, f"other-{n}", "alpha"), range(4)))
        assert [answer.status_code for answer in others] == [201] * 4, "other names wait their turn"
        went = list(pool.map(lambda _: admin(server, "DELETE", "/a").status_code, range(4)))
        assert went.count(200) == 1 and set(went) <= {200, 404, 409}, went


def test_a_name_changes_hands_without_a_gap(models_dir):
    with operated(models_dir, "--model", f"m={models_dir}/alpha") as server:
        old, _ = stream(server, greedy("m", 1200))
        begun, ended, answers = threading.Event(), threading.Event(), []

        def ask():
            while not ended.is_set():
                body = {"model": "m", "prompt": "t1 t2", "max_tokens": 2, "ignore_eos": True}
                answers.append(httpx.post(server.url + "/v1/completions", json=body, timeout=60))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            runs_on = pool.submit(lambda: stream(server, greedy("m", 1200, cache_salt="x"), begun.set))
            askers = [pool.submit(ask) for _ in range(3)]
            begun.wait()
            for quantization in ("q8_0", "q4_0"):
                swap = {"path": "alpha", "options": {"quantization": quantization}, "drain_timeout": 60}
                swapped = admin(server, "PUT", "/m", json=swap)
                assert swapped.status_code == 200, swapped.text
                assert swapped.json()["quantization"] == quantization
            ended.set()
            for asker in askers:
                asker.result()
            seen, error = runs_on.result()
        assert error is None and seen == old, "who began on the old one ends on it"
        assert answers and {answer.status_code for answer in answers} == {200}
        new, _ = stream(server, greedy("m", 50))
        assert new["logprobs"] != old["logprobs"][:50], "the name means other weights now"
        deadline = time.monotonic() + 60
        while len(admin(server, "GET").json()["models"]) > 1:
            assert time.monotonic() < deadline, "a replaced model never left"
            time.sleep(0.05)
        assert served(server) == ["m"]


def test_what_runs_on_a_model_that_goes_may_end_or_is_told(models_dir):
    with operated(models_dir) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for drain_timeout, tokens in ((60, 300), (0, 1900)):
            assert load(server, "a", "alpha").status_code == 201
            begun = threading.Event()
            runs = pool.submit(lambda: stream(server, greedy("a", tokens), begun.set))
            assert begun.wait(30)
            gone = admin(server, "DELETE", "/a", json={"drain_timeout": drain_timeout})
            assert gone.status_code == 200, gone.text
            seen, error = runs.result()
            if drain_timeout:
                assert error is None and seen["finish_reason"] == "length"
                assert gone.json()["cut_off"] == 0
            else:
                assert error["code"] == "shutting_down" and len(seen["tokens"]) < tokens
                assert gone.json()["cut_off"] == 1
        server.wait_idle()


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_the_demo_model_adds_when_it_is_quantized_at_load(models_dir, quantization):
    with operated(models_dir) as server:
        plain = admin(server, "GET", "/pagoda-demo").json()["memory"]["weights_bytes"]
        came = load(server, "small", "builtin", quantization=quantization)
        assert came.status_code == 201 and came.json()["quantization"] == quantization
        assert came.json()["memory"]["weights_bytes"] < plain
        asked = [{"role": "user", "content": "What is 17 + 25?"}]
        said = sdk(server).chat.completions.create(model="small", messages=asked, temperature=0)
        assert "42" in said.choices[0].message.content, said.choices[0].message.content


def test_what_the_readme_tells_operators_to_run(tmp_path):
    readme = (GOLDENS.parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    lines = [line for line in block.splitlines() if line.startswith("curl ")]
    checkpoint(tmp_path, "org/a", "llama2")
    checkpoint(tmp_path, "org/a-2", "qwen3")
    with operated(tmp_path) as server:
        given = {"AUTH": f"Authorization: {ADMIN['Authorization']}",
                 "MODELS": f"{server.url}/admin/models"}
        told = []
        for line in lines:
            command = line.replace("curl ", "curl -sS --fail-with-body ", 1)
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60,
                                  env={**os.environ, **given})
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            told.append(json.loads(done.stdout))
        everything, came, replaced, gone = told
        assert [model["name"] for model in everything["models"]] == ["pagoda-demo"]
        assert (came["quantization"], replaced["quantization"]) == ("q4_0", None)
        assert (gone["state"], served(server)) == ("unloaded", ["pagoda-demo"])


def resident(server):
    """Resident bytes of the process, and its threads."""
    text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024, int(fields["Threads"])


@pytest.mark.timeout(600)
def test_unloading_gives_everything_back(models_dir):
    larger = models_dir / "larger"
    larger.mkdir()
    (larger / "config.json").write_text(json.dumps({**LARGER_CONFIG, "num_hidden_layers": 1}))
    with operated(models_dir) as server:
        holds, at_rest = 0, resident(server)[0]

        def once():
            nonlocal holds
            came = load(server, "x", "larger", **{"load-format": "dummy"})
            assert came.status_code == 201, came.text
            holds = came.json()["memory"]["weights_bytes"]
            body = {"model": "x", "prompt": [5, 6, 7], "max_tokens": 2, "ignore_eos": True}
            assert httpx.post(server.url + "/v1/completions", json=body, timeout=60).status_code == 200
            # Weights and activations, touched by now; of the cache and scratch some.
            grown, parts = resident(server)[0] - at_rest, came.json()["memory"]
            least = parts["weights_bytes"] + parts["activations_bytes"]
            assert least - (4 << 20) < grown < parts["total_bytes"] + (8 << 20), (grown, parts)
            assert admin(server, "DELETE", "/x").status_code == 200

        once()
        before, threads = resident(server)
        for _ in range(20):
            once()
        deadline = time.monotonic() + 30
        # What is dropped behind the answer takes a moment. A thread or two more may be the runtime's
        # own, which it keeps for what blocks; of each round it would be twenty.
        while (after := resident(server))[1] > threads + 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert after[1] <= threads + 2, "threads stay behind"
        assert after[0] - before < 8 << 20 < holds, f"{(after[0] - before) >> 20} MiB stay behind"


def test_a_server_is_ready_when_all_models_to_begin_with_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LARGER_CONFIG, "num_hidden_layers": 4}))
    server = Server("--model", "builtin", "--model", f"big={tmp_path},load-format=dummy", *SMALL)
    try:
        seen = []
        while not seen or seen[-1][0] != 200:
            assert server.process.poll() is None, server.output()
            with contextlib.suppress(httpx.TransportError):
                # The readiness first: it can only have grown when the model is asked for.
                ready = httpx.get(server.url + "/ready")
                demo = httpx.get(server.url + "/v1/models/pagoda-demo")
                big = httpx.get(server.url + "/v1/models/big")
                seen.append((ready.status_code, demo.status_code, big.status_code))
            time.sleep(0.01)
        assert seen[-1] == (200, 200, 200)
        assert (503, 200, 503) in seen, "the first one serves while the second is loaded"
        assert 404 not in {status for statuses in seen for status in statuses}, seen
        assert server.stop() == 0
    finally:
        server.stop(signal.SIGKILL)


def test_sigterm_drains_every_model(models_dir):
    with operated(models_dir, "--model", "builtin", "--model", f"b={models_dir}/alpha") as server:
        begun = [threading.Event() for _ in range(3)]
        load(server, "c", "org/beta")
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            runs = [
                pool.submit(lambda at=at, name=name: stream(server, greedy(name, 600), begun[at].set))
                for at, name in enumerate(["pagoda-demo", "b", "c"])
            ]
            assert all(event.wait(30) for event in begun)
            server.process.send_signal(signal.SIGTERM)
            for one in runs:
                seen, error = one.result()
                assert error is None and seen["finish_reason"] == "length"
        assert server.process.wait(timeout=60) == 0
