"""A client that leaves frees what it held; a busy server says so; retries and timeouts work."""

import concurrent.futures
import http.server
import json
import threading
import time

import httpx
import openai
import pytest

from conftest import sdk
from server import Server

# Long enough that it cannot end by itself while the test looks.
LONG = {"ignore_eos": True}
GREETING = [{"role": "user", "content": "Hello!"}]


def long_ask(client, model, **more):
    return client.chat.completions.create(
        model=model, messages=GREETING, n=16, temperature=1, extra_body=LONG, **more
    )


def test_leaving_a_stream_frees_everything(client, server, model):
    before = server.wait_idle()
    stream = long_ask(client, model, stream=True)
    for _, chunk in zip(range(3), stream):
        assert chunk.choices
    stream.close()
    after = server.wait_idle()
    generated = after["pagoda_generation_tokens_total"] - before["pagoda_generation_tokens_total"]
    room = client.models.list().data[0].model_extra["max_model_len"] * 16
    assert 0 < generated < room // 2, "it ran on after the client had left"


def test_leaving_without_a_stream_frees_everything(server, model):
    before = server.wait_idle()
    impatient = sdk(server, timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        long_ask(impatient, model)
    after = server.wait_idle()
    generated = after["pagoda_generation_tokens_total"] - before["pagoda_generation_tokens_total"]
    room = sdk(server).models.list().data[0].model_extra["max_model_len"] * 16
    assert generated < room


def test_leaving_the_queue_frees_the_place():
    with Server("--max-num-seqs", "1") as server:
        client = sdk(server)
        running = client.completions.create(
            model="default", prompt="a", max_tokens=400, n=16, stream=True, extra_body=LONG
        )
        next(iter(running))
        with pytest.raises(openai.APITimeoutError):
            sdk(server, timeout=0.2).completions.create(
                model="default", prompt="b", max_tokens=400, extra_body=LONG
            )
        running.close()
        server.wait_idle()
        answer = client.completions.create(model="default", prompt="c", max_tokens=1)
        assert answer.usage.completion_tokens == 1


def test_many_leave_at_once(server, model):
    def leave(index):
        stream = long_ask(sdk(server), model, stream=True, seed=index)
        for _, _ in zip(range(index % 4), stream):
            pass
        stream.close()

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(leave, range(24)))
    server.wait_idle()


def test_a_full_queue_refuses_with_retry_after_and_the_sdk_retries():
    with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "1") as server:
        room = sdk(server).models.list().data[0].model_extra["max_model_len"]
        hold = sdk(server).completions.create(
            model="default", prompt="a", max_tokens=room - 8, stream=True, extra_body=LONG
        )
        next(iter(hold))
        body = {"prompt": "b", "max_tokens": 400, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asks = [
                pool.submit(httpx.post, server.url + "/v1/completions", json=body, timeout=60)
                for _ in range(8)
            ]
            answers = [ask.result() for ask in asks]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused and {answer.status_code for answer in refused} <= {429, 503}
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        hold.close()
        patient = sdk(server, max_retries=6)
        answer = patient.completions.create(model="default", prompt="c", max_tokens=1)
        assert answer.usage.completion_tokens == 1


class Flaky(http.server.BaseHTTPRequestHandler):
    """Refuses as the server does, twice, then passes the request on."""

    refusals = 2

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.server.refused < self.refusals:
            self.server.refused += 1
            answer = self.server.refusal
            status, headers = answer.status_code, {"retry-after": answer.headers["retry-after"]}
        else:
            answer = httpx.post(self.server.upstream + self.path, content=body)
            status, headers = answer.status_code, {}
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_):
        pass


def test_the_sdk_retries_our_refusal(server, model):
    with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "1") as busy:
        body = {"prompt": "b", "max_tokens": 400, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asks = [
                pool.submit(httpx.post, busy.url + "/v1/completions", json=body, timeout=60)
                for _ in range(8)
            ]
            refusal = next(a.result() for a in asks if a.result().status_code != 200)
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    proxy.upstream, proxy.refusal, proxy.refused = server.url, refusal, 0
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{proxy.server_port}/v1"
        patient = openai.OpenAI(base_url=url, api_key="any", max_retries=3)
        begun = time.monotonic()
        answer = patient.completions.create(model=model, prompt="1, 2,", max_tokens=1)
        assert answer.usage.completion_tokens == 1 and proxy.refused == 2
        assert time.monotonic() - begun >= 2, "Retry-After was not understood"
        proxy.refused = 0
        hasty = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        with pytest.raises((openai.RateLimitError, openai.InternalServerError)):
            hasty.completions.create(model=model, prompt="1, 2,", max_tokens=1)
    finally:
        proxy.shutdown()


def test_a_slow_reader_gets_everything(server, model):
    body = {
        "model": model, "messages": GREETING, "stream": True, "max_tokens": 200, "temperature": 0,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as answer:
        time.sleep(1)
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
    assert usage["completion_tokens"] == 200
