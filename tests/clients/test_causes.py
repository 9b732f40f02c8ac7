"""What made other servers of language models vulnerable, tried on this one; tests/causes.toml lists it.

Each test is named there beside what it stands for, and so are tests elsewhere: an entry that names
no test fails here."""

import contextlib
import json
import pathlib
import re
import socket
import time
import tomllib

import httpx
import pytest

from server import Server
from test_errors import assert_shape
from test_lifecycle import GOLDENS, run, words_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
CAUSES = tomllib.loads((ROOT / "tests/causes.toml").read_text(encoding="utf-8"))["cause"]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause["what"])
def test_every_cause_has_tests_that_exist_or_a_reason(cause):
    assert cause["seen"]
    stands = [kind for kind in ("tests", "absent", "open") if cause.get(kind)]
    assert len(stands) == 1, "tests, or why there is nothing to try, or what is open"
    for named in cause.get("tests", []):
        file, name = named.split("::")
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"\b(def|fn) {re.escape(name)}\(", source), named


def raw(server, request):
    """The bytes of the answer to bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        data = b""
        with contextlib.suppress(OSError):
            sock.sendall(request)
            while chunk := sock.recv(65536):
                data += chunk
    return data


@pytest.mark.parametrize("name", ["x", "127.0.0.1"])
def test_no_spelling_of_a_path_gets_past_the_key(name):
    targets = [
        "/v1/models", "//v1/models", "/v1/models/", "/v1/./models", "/v1//models",
        "/health/../v1/models", "/health/..%2fv1/models", "/v1%2fmodels", "/%76%31/models",
        "/V1/MODELS", "/v1/models;/health", "/v1/models?/health", "/v1/models%3f/health",
        "/v1/models%00", "/health%00/../v1/models", "/health?/v1/models", "/health;/v1/models",
        "/v1/models#/health", "http://health/v1/models", "http://x/health/../v1/models",
        "/v1/models/default", "/v1\\models", "/tokenize", "/v1/models%20", "*",
    ]
    headers = [
        "", "X-Original-URL: /health\r\n", "X-Rewrite-URL: /health\r\n", "X-Forwarded-Path: /health\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n", "Authorization: Bearer\r\n", "Authorization: Basic a2V5\r\n",
        "Authorization: Bearer k\r\n", "Authorization: Bearer key\0\r\n", "Authorization: key\r\n",
        "Authorization: Bearer wrong\r\nAuthorization: Bearer key2\r\n", "X-API-Key: \r\n",
    ]
    body = '{"prompt": "x", "max_tokens": 1}'
    tail = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    open_paths = ("/health?", )
    with Server("--api-key", "key") as server:
        tries = [(method, target, "") for target in targets for method in ("GET", "POST", "HEAD")]
        tries += [("GET", "/v1/models", header) for header in headers]
        tries += [("POST", COMPLETIONS, header) for header in headers]
        for method, target, header in tries:
            request = f"{method} {target} HTTP/1.1\r\nHost: {name}\r\n{header}{tail}"
            answer = raw(server, request.encode("latin-1"))
            assert answer.startswith(b"HTTP/1.1 "), request
            assert b'"data"' not in answer and b'"choices"' not in answer, request
            if not target.startswith(open_paths):
                assert not answer.startswith(b"HTTP/1.1 2"), request
        # The same requests say more to whoever has the key.
        allowed = httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer key"})
        assert allowed.json()["data"]


def odd_bodies():
    """Bodies that a request could be refused for, each with something to repeat in the refusal."""
    numbers = [-1, -(1 << 31), 1 << 31, 1 << 32, -(1 << 63), 1 << 63, 1 << 64, 1e308, 0.5, True, "-1", [], {}]
    fields = [
        "n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "priority", "best_of",
        "truncate_prompt_tokens", "n_discard", "n_keep", "id_slot", "prompt_logprobs", "temperature",
        "top_p", "min_p", "repetition_penalty",
    ]
    for field in fields:
        for number in numbers:
            yield COMPLETIONS, {"prompt": "x", "max_tokens": 1, field: number}
    for number in numbers:
        yield COMPLETIONS, {"prompt": [number], "max_tokens": 1}
        yield COMPLETIONS, {"prompt": "x", "max_tokens": 1, "stop_token_ids": [number]}
        yield COMPLETIONS, {"prompt": "x", "max_tokens": 1, "logit_bias": {str(number): 1}}
        yield COMPLETIONS, {"prompt": "x", "max_tokens": 1, "allowed_token_ids": [number]}
        yield "/detokenize", {"tokens": [number]}
        yield CHAT, {"messages": [{"role": "user", "content": number}], "max_tokens": 1}
        yield CHAT, {"messages": number}


def test_no_number_of_a_client_is_a_failure_of_ours(server):
    before = server.metrics()
    refused = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path, body in odd_bodies():
            answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400), (body, answer.text)
            if answer.status_code == 400:
                refused += 1
                assert_shape(answer, 400)
    assert refused > 100
    server.wait_idle()
    assert server.process.poll() is None and "panicked" not in server.output()
    assert before.keys() <= server.metrics().keys()


def test_no_error_tells_of_memory_or_sources(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        texts = [client.get("/v1/models/" + "%ff" * 20).text, client.get("/nowhere").text]
        for path, body in odd_bodies():
            text = json.dumps(body)
            for content in (text, text[:-1], text + "}"):
                answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
                if answer.status_code != 200:
                    texts.append(answer.text)
    assert len(texts) > 500
    for text in texts:
        told = re.search(r"0x[0-9a-fA-F]{6}|\.rs:\d|/src/|thread '|RUST_BACKTRACE|panicked", text)
        assert not told, text


def test_what_could_be_fetched_is_never_fetched(server, model):
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        parts = [
            {"type": kind, kind: {"url": url}}
            for kind in ("image_url", "audio_url", "video_url", "file", "input_audio")
        ]
        for part in parts:
            body = {"model": model, "messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            assert_shape(httpx.post(server.url + CHAT, json=body), 400)
        # Text is text, whatever it looks like.
        for text in (f"![]({url})", f"<img src='{url}'>", url):
            body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
            assert httpx.post(server.url + CHAT, json=body).status_code == 200
            assert httpx.post(server.url + COMPLETIONS, json={"prompt": text, "max_tokens": 1}).status_code == 200
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize("field", ["prompt_embeds", "chat_template", "guided_json", "structured_outputs"])
def test_what_other_servers_execute_is_refused_or_ignored(server, model, field):
    for value in ("gASVAAAAAA==", "{{ ''.__class__ }}", {"json": {"$ref": "#"}}):
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": "Hello!"}]}), (COMPLETIONS, {"prompt": "1"}),
        ):
            answer = httpx.post(server.url + path, json={**body, "max_tokens": 1, field: value})
            if answer.status_code == 200:
                assert field in answer.headers["x-pagoda-ignored"]
            else:
                assert_shape(answer, 400)


@pytest.mark.parametrize(
    "path",
    [
        "/update_weights_from_disk", "/update_weights_from_tensor", "/init_weights_update_group",
        "/collective_rpc", "/sleep", "/wake_up", "/start_profile", "/flush_cache",
        "/reset_prefix_cache", "/set_internal_state", "/v1/load_lora_adapter", "/v1/rerank", "/rerank",
        "/v1/files", "/slots/0?action=save", "/generate", "/abort_request", "/configure_logging",
        "/server_info", "/get_server_info", "/debug/pprof", "/completion", "/props",
    ],
)
def test_no_route_changes_a_running_server(server, path):
    for method in ("GET", "POST", "PUT"):
        answer = httpx.request(method, server.url + path, json={} if method != "GET" else None)
        assert_shape(answer, 404)


def listening(pid):
    """Addresses, as the kernel writes them, of the sockets on which a process listens."""
    inodes = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(link.readlink()))
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                yield fields[1]


def test_the_process_listens_on_one_port_of_this_machine_alone(server):
    assert list(listening(server.process.pid)) == [f"0100007F:{server.port:04X}"]


def checkpoint(folder, case="llama3"):
    """A small model's folder, with words for a tokenizer."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).write_bytes((GOLDENS / case / name).read_bytes())
    num_ids = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "tokenizer.json").write_text(words_tokenizer(num_ids))
    return folder


def test_code_beside_a_model_is_never_run(tmp_path):
    folder, trace = checkpoint(tmp_path / "m"), tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w').write('ran')\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (folder / name).write_text(code)
    auto = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M",
            "AutoTokenizer": ["tokenization_evil.T", None]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": auto, "trust_remote_code": True})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    with Server("--model", folder) as server:
        body = {"prompt": "t7 t8", "max_tokens": 2, "ignore_eos": True}
        assert httpx.post(server.url + COMPLETIONS, json=body).status_code == 200
    assert not trace.exists()


def test_pickled_weights_are_no_weights(tmp_path):
    folder, trace = checkpoint(tmp_path / "m"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    pickled = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        (folder / name).write_bytes(pickled)
    tried = run("--model", str(folder), "--port", "0")
    assert tried.returncode == 1 and "has no model.safetensors" in tried.stdout + tried.stderr
    # Nor under the name of what is read.
    (folder / "model.safetensors").write_bytes(pickled)
    tried = run("--model", str(folder), "--port", "0")
    assert tried.returncode == 1 and "model.safetensors" in tried.stdout + tried.stderr
    assert not trace.exists()


def test_a_type_in_a_configuration_is_a_name_and_never_evaluated(tmp_path):
    trace = tmp_path / "ran"
    for number, words in enumerate((f"__import__('os').system('touch {trace}')", "torch.bfloat16", "float64")):
        folder = checkpoint(tmp_path / f"m{number}")
        config = json.loads((folder / "config.json").read_text())
        config.pop("dtype", None)
        (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": words}))
        tried = run("--model", str(folder), "--port", "0", "--kv-cache-memory-bytes", "100")
        said = tried.stdout + tried.stderr
        assert tried.returncode == 1 and "panicked" not in said and not trace.exists(), said


def test_a_template_reaches_nothing_but_its_chat(tmp_path):
    trace = tmp_path / "ran"
    secret = tmp_path / "secret"
    secret.write_text("not-for-templates")
    reaches = [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        f"{{{{ cycler.__init__.__globals__.os.popen('touch {trace}').read() }}}}",
        f"{{{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch {trace}') }}}}",
        f"{{% include '{secret}' %}}", f"{{% import '{secret}' as x %}}{{{{ x }}}}",
        f"{{% extends '{secret}' %}}", "{{ messages.__class__ }}", "{{ env }}{{ environ }}{{ config }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 10 ** 10 ** 10 }}", "{{ 'x' * 10 ** 12 }}",
        "{{ range(10 ** 18) | list }}", "{{ 'x'.ljust(10 ** 12) }}", "{{ '%1000000000000d' | format(1) }}",
    ]
    for number, source in enumerate(reaches):
        folder = checkpoint(tmp_path / f"m{number}")
        (folder / "chat_template.jinja").write_text(source)
        flags = ("--model", folder, "--served-model-name", "m", "--kv-cache-memory-bytes", "1MiB")
        try:
            server = Server(*flags).__enter__()
        except RuntimeError as refused:
            # Refused at load, by name.
            assert "template" in str(refused) and "panicked" not in str(refused), refused
            continue
        with server:
            body = {"messages": [{"role": "user", "content": "t1"}], "max_tokens": 1}
            answer = httpx.post(server.url + CHAT, json=body, timeout=60)
            assert answer.status_code in (200, 400, 500), (source, answer.text)
            told = httpx.post(server.url + "/tokenize", json={"messages": body["messages"]}, timeout=60)
            assert "not-for-templates" not in answer.text + told.text
            assert httpx.get(server.url + "/health").status_code == 200, source
            assert "panicked" not in server.output(), source
    assert not trace.exists()


DOUBLED = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"


def processes_of(server):
    """Ids of the processes that a server started."""
    tasks = pathlib.Path(f"/proc/{server.process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def test_a_template_that_grows_ends_its_own_process(tmp_path):
    flags = ("--served-model-name", "m", "--kv-cache-memory-bytes", "1MiB")
    # At load, it is refused by name.
    folder = checkpoint(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(DOUBLED)
    tried = run("--model", str(folder), "--port", "0")
    assert tried.returncode == 1
    assert "one word takes more than the allowed memory" in tried.stderr.splitlines()[-1]
    # At a request, that request alone.
    source = f"{{% if messages[0].content == 't9' %}}{DOUBLED}{{% endif %}}{{{{ messages[0].content }}}}"
    (folder / "chat_template.jinja").write_text(source)
    with Server("--model", folder, *flags) as server:
        def ask(text):
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
            return httpx.post(server.url + CHAT, json=body, timeout=60)

        (first,) = processes_of(server)
        environ = pathlib.Path(f"/proc/{first}/environ").read_bytes()
        assert environ == b"", "no secrets beside a template"
        assert ask("t7").status_code == 200
        assert processes_of(server) == [first], "it stays"
        answer = ask("t9")
        assert_shape(answer, 400)
        assert "more than the allowed memory" in answer.json()["error"]["message"]
        assert ask("t7").status_code == 200
        (second,) = processes_of(server)
        assert second != first
        server.process.kill()
        server.process.wait()
        # Whoever started it is gone, and so is it.
        deadline = time.monotonic() + 30
        while pathlib.Path(f"/proc/{second}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
