"""Traces: a caller's goes on in ours, spans tell what happened, and no collector can hurt a request."""

import json
import re
import time

import httpx
import pytest

from collector import CERTIFICATE, Collector
from conftest import sdk
from server import Server, free_port

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
QUESTION = "What is 17 + 25?"
CHAT = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 32}
DROPPED, EXPORTED = "pagoda_trace_spans_dropped_total", "pagoda_trace_spans_exported_total"


@pytest.fixture(scope="module")
def traced():
    """A collector and a server that sends to it."""
    with Collector() as collector, Server("--otlp-endpoint", collector.url) as server:
        yield collector, server


def post(server, path, body, **headers):
    return httpx.post(f"{server.url}/v1/{path}", json=body, headers=headers, timeout=60)


def of_request(answer):
    """Whether a span is that of this answer's request."""
    return lambda span: span["attributes"].get("gen_ai.request.id") == answer.headers["x-request-id"]


def parts_of(collector, request, count=3):
    parts = collector.wait_for(lambda span: span.get("parentSpanId") == request["spanId"], count)
    return {part["name"]: part for part in parts}


def times(span):
    return int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])


def test_a_trace_goes_on_and_tells_what_happened(traced):
    collector, server = traced
    before = time.time_ns()
    answer = post(server, "chat/completions", CHAT, traceparent=SAMPLED, tracestate="us=1,them=2")
    usage = answer.json()["usage"]
    (request,) = collector.wait_for(of_request(answer))
    after = time.time_ns()
    assert (request["traceId"], request["parentSpanId"]) == (TRACE, SPAN)
    assert request["traceState"] == "us=1,them=2"
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request['spanId']}-01"
    assert request["name"] == "chat pagoda-demo" and request["kind"] == 2
    assert "status" not in request and request["flags"] & 0x300 == 0x300, "its parent is remote"
    told = request["attributes"]
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "pagoda-demo",
        "gen_ai.request.max_tokens": 32, "gen_ai.request.temperature": 0,
        "gen_ai.request.choice.count": 1, "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "http.route": "/v1/chat/completions", "http.response.status_code": 200,
    }
    assert {name: told.get(name) for name in expected} == expected
    parts = parts_of(collector, request)
    assert {part["traceId"] for part in parts.values()} == {TRACE}
    began, ended = times(request)
    queued, queue_end = times(parts["queue"])
    prefill, first_token = times(parts["prefill"])
    decode, last_token = times(parts["decode"])
    in_order = [before, began, queued, queue_end, first_token, last_token, ended, after]
    assert in_order == sorted(in_order), in_order
    assert (prefill, decode) == (queue_end, first_token)
    assert first_token < last_token
    waited = told["gen_ai.latency.time_to_first_token"] * 1e9
    assert abs(waited - (first_token - queued)) < 1e6
    assert told["gen_ai.latency.e2e"] * 1e9 <= ended - began + 1e6


def test_a_number_of_a_client_cannot_spoil_a_batch(traced):
    """OTLP has signed numbers alone: one beyond them costs all spans of its batch."""
    collector, server = traced
    for seed in (-1, -(2**63), 2**63 - 1):
        answer = post(server, "chat/completions", {**CHAT, "seed": seed, "temperature": 0.7})
        (request,) = collector.wait_for(of_request(answer))
        assert request["attributes"]["gen_ai.request.seed"] == seed
        assert request["attributes"]["gen_ai.request.temperature"] == 0.7


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_keep_their_order_whoever_ends_first(traced, stream):
    """The first prompt is the one that needs longest."""
    collector, server = traced
    body = {"prompt": ["a " * 1200, "b"], "max_tokens": 1, "ignore_eos": True, "stream": stream}
    answer = post(server, "completions", body)
    (request,) = collector.wait_for(of_request(answer))
    parts = collector.wait_for(lambda span: span.get("parentSpanId") == request["spanId"], 6)
    tokens = {
        part["attributes"]["pagoda.prompt.index"]: part["attributes"]["gen_ai.usage.input_tokens"]
        for part in parts if part["name"] == "prefill"
    }
    assert tokens[0] > 1000 > 10 > tokens[1]


def test_every_prompt_of_a_request_has_its_parts(traced):
    collector, server = traced
    body = {"prompt": ["1, 2, 3,", "4, 5, 6,"], "max_tokens": 4, "ignore_eos": True}
    answer = post(server, "completions", body)
    (request,) = collector.wait_for(of_request(answer))
    assert request["attributes"]["gen_ai.operation.name"] == "text_completion"
    assert request["attributes"]["gen_ai.usage.output_tokens"] == 8
    assert request["attributes"]["gen_ai.response.finish_reasons"] == ["length"] * 2
    parts = collector.wait_for(lambda span: span.get("parentSpanId") == request["spanId"], 6)
    indexes = sorted((part["name"], part["attributes"]["pagoda.prompt.index"]) for part in parts)
    assert indexes == [(name, n) for name in ("decode", "prefill", "queue") for n in (0, 1)]


@pytest.mark.parametrize(
    "wrong", ["", "what", SAMPLED.upper(), SAMPLED + "-more", f"00-{'0' * 32}-{SPAN}-01"]
)
def test_a_wrong_header_begins_a_trace_of_its_own(traced, wrong):
    collector, server = traced
    answer = post(server, "chat/completions", CHAT, traceparent=wrong)
    assert answer.status_code == 200
    (request,) = collector.wait_for(of_request(answer))
    assert request["traceId"] != TRACE and re.fullmatch("[0-9a-f]{32}", request["traceId"])
    assert "parentSpanId" not in request


def test_errors_and_whose_they_are(traced):
    collector, server = traced
    for body, status in (({**CHAT, "temperature": 9}, 400), ({**CHAT, "model": "none"}, 404)):
        answer = post(server, "chat/completions", body)
        (request,) = collector.wait_for(of_request(answer))
        assert request["attributes"]["http.response.status_code"] == status == answer.status_code
        assert "status" not in request and "error.type" not in request["attributes"]
    with Server(
        "--max-num-seqs", "1", "--max-num-queued-reqs", "64", "--otlp-endpoint", collector.url
    ) as busy:
        hold = sdk(busy).completions.create(
            model="default", prompt="a", max_tokens=400, n=64, stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(hold))
        answer = post(busy, "chat/completions", {**CHAT, "n": 64})
        hold.close()
        (request,) = collector.wait_for(of_request(answer))
    assert answer.status_code == 503
    assert request["status"]["code"] == 2 and request["attributes"]["error.type"] == "503"


def test_a_client_that_leaves(traced):
    collector, server = traced
    stream = sdk(server).chat.completions.create(
        model="default", messages=CHAT["messages"], stream=True, n=16, temperature=1,
        extra_body={"ignore_eos": True}, extra_headers={"X-Request-Id": "the-one-that-leaves"},
    )
    for _, _ in zip(range(3), stream):
        pass
    stream.close()
    (request,) = collector.wait_for(
        lambda span: span["attributes"].get("gen_ai.request.id") == "the-one-that-leaves"
    )
    assert request["status"]["code"] == 2 and request["attributes"]["error.type"] == "cancelled"
    assert request["attributes"]["gen_ai.usage.output_tokens"] > 0
    assert times(parts_of(collector, request)["decode"])[1] <= times(request)[1]


def test_nothing_that_was_said_is_told(traced):
    collector, server = traced
    answer = post(server, "chat/completions", {**CHAT, "stop": ["a-stop-to-keep"]})
    collector.wait_for(of_request(answer))
    told = json.dumps(collector.calls)
    assert "17 + 25" not in told and "a-stop-to-keep" not in told


def test_who_leaves_before_the_answer_begins(traced):
    collector, server = traced
    headers = {"X-Request-Id": "left-early"}
    body = {**CHAT, "n": 32, "temperature": 1, "ignore_eos": True}
    body["max_tokens"] = 400
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=0.5)
    (request,) = collector.wait_for(
        lambda span: span["attributes"].get("gen_ai.request.id") == "left-early"
    )
    assert request["attributes"]["error.type"] == "cancelled"
    assert "http.response.status_code" not in request["attributes"]
    assert request["name"] == "chat pagoda-demo"
    parts_of(collector, request)


def test_what_is_never_recorded_names_no_span(traced):
    collector, server = traced
    for path in ("/health", "/ready", "/metrics", "/"):
        answer = httpx.get(server.url + path, headers={"traceparent": SAMPLED})
        assert answer.status_code == 200 and "traceresponse" not in answer.headers, path
    unknown = httpx.request("BREW", server.url + "/v1/coffee/a-secret")
    (request,) = collector.wait_for(of_request(unknown))
    assert request["name"] == "HTTP" and "http.route" not in request["attributes"]
    head = httpx.head(server.url + "/v1/models")
    (request,) = collector.wait_for(of_request(head))
    assert request["name"] == "HEAD /v1/models" and "status" not in request


@pytest.mark.parametrize("ratio", ["0", "1"])
def test_who_decides_what_is_traced(ratio):
    """The caller, and where it says nothing the ratio. The last spans go out at the end."""
    with Collector() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url + "/"}
        with Server("--otlp-sample-ratio", ratio, env=environment) as server:
            answers = {
                kind: post(server, "chat/completions", CHAT, **headers)
                for kind, headers in {
                    "sampled": {"traceparent": SAMPLED}, "unsampled": {"traceparent": UNSAMPLED},
                    "undecided": {},
                }.items()
            }
        spans = collector.spans()
        found = {kind for kind in answers if any(map(of_request(answers[kind]), spans))}
    assert found == {"sampled"} | ({"undecided"} if ratio == "1" else set())
    assert answers["unsampled"].headers["traceresponse"].endswith("-00")


def test_off_by_default_and_the_log_names_the_trace(server):
    answer = post(server, "chat/completions", CHAT, traceparent=SAMPLED)
    assert "traceresponse" not in answer.headers
    request_id, deadline = answer.headers["x-request-id"], time.monotonic() + 10
    while not (lines := [line for line in server.output().splitlines() if request_id in line]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert TRACE in lines[0]
    assert DROPPED not in server.metrics()


def ask_much(server):
    """Requests of 193 spans each, more than the queue holds: all are answered."""
    body = {"prompt": ["a"] * 64, "max_tokens": 1, "ignore_eos": True}
    for _ in range(30):
        assert post(server, "completions", body).status_code == 200


def test_a_collector_that_hangs_costs_spans_alone():
    with Collector(None) as collector:
        server = Server("--otlp-endpoint", collector.url)
        with server:
            ask_much(server)
            metrics = server.metrics()
            assert metrics[DROPPED] >= 30 * 193 - 4096 - 512 and metrics[EXPORTED] == 0
            assert post(server, "chat/completions", CHAT).status_code == 200
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 15, "it waited for the collector"


@pytest.mark.parametrize("status", [500, "down"])
def test_a_collector_that_fails_is_told_once(status):
    with Collector((500, {}, b"")) as collector:
        url = collector.url if status == 500 else f"http://127.0.0.1:{free_port()}"
        with Server("--otlp-endpoint", url) as server:
            deadline = time.monotonic() + 60
            # More spans than a first batch has: several are lost, one line says so.
            while server.metrics()[DROPPED] < 16:
                ask_once(server)
                assert time.monotonic() < deadline
                time.sleep(0.3)
            assert server.output().count("spans are dropped") == 1
            assert server.metrics()[EXPORTED] == 0


def settle(server, name, least):
    """Waits until so many spans have met their fate."""
    deadline = time.monotonic() + 60
    while (metrics := server.metrics())[name] < least:
        assert time.monotonic() < deadline, metrics
        time.sleep(0.05)
    return metrics


def ask_once(server):
    """A request of four spans."""
    assert post(server, "chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize(
    "statuses,headers,least", [((429, 503), {"Retry-After": "1"}, 1), ((502, 504), {}, 0.3)]
)
def test_a_collector_is_asked_again_when_it_says(statuses, headers, least):
    answers = [(status, headers, b"") for status in statuses]
    with Collector(*answers, (200, {}, b"{}")) as collector:
        with Server("--otlp-endpoint", collector.url) as server:
            ask_once(server)
            assert settle(server, EXPORTED, 4)[DROPPED] == 0
        first, second, third = [at for at, *_ in collector.posts]
        assert second - first >= least and third - second >= least


@pytest.mark.parametrize("status", [400, 401, 307])
def test_a_refused_batch_is_not_sent_again(status):
    said = json.dumps({"message": "no such\ntenant"}).encode()
    with Collector((200, {}, b"{}")) as other:
        headers = {"Location": other.url + "/v1/traces"}
        with Collector((status, headers, said)) as collector:
            with Server("--otlp-endpoint", collector.url) as server:
                ask_once(server)
                assert settle(server, DROPPED, 4)[EXPORTED] == 0
                assert len(collector.posts) == 1 and not other.posts
                assert f"it answered {status}" in server.output()
                assert "no such tenant" in server.output()


@pytest.mark.parametrize("count", ["3", 3])
def test_what_a_collector_rejects_is_lost(count):
    partial = {"partialSuccess": {"rejectedSpans": count, "errorMessage": "too old"}}
    with Collector((200, {}, json.dumps(partial).encode()), (200, {}, b"{}")) as collector:
        with Server("--otlp-endpoint", collector.url) as server:
            ask_once(server)
            assert settle(server, DROPPED, 3)[EXPORTED] == 1
            ask_once(server)
            assert settle(server, EXPORTED, 5)[DROPPED] == 3
            assert "it rejected some: too old" in server.output()
        assert len(collector.posts) == 2, "nothing is sent twice"


def test_whatever_a_collector_says_with_200_is_taken():
    said = [b"", b"no JSON", b"[]", b'{"partialSuccess": {}}', b"{" * 100000]
    with Collector(*((200, {}, text) for text in said)) as collector:
        with Server("--otlp-endpoint", collector.url) as server:
            for num_asked in range(1, len(said) + 1):
                ask_once(server)
                assert settle(server, EXPORTED, 4 * num_asked)[DROPPED] == 0


def test_variables_of_opentelemetry():
    """Everything said by them: an HTTPS address, a key, who this is."""
    with Collector(service="chat-eu", https=True) as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url + "/tenant/spans",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": CERTIFICATE,
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20a-secret,content-type=text/plain",
            "OTEL_SERVICE_NAME": "chat-eu", "OTEL_RESOURCE_ATTRIBUTES": "service.name=no,zone=eu%201",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        with Server(env=environment) as server:
            ask_once(server)
            settle(server, EXPORTED, 4)
            output = server.output()
            assert "a-secret" not in output + httpx.get(server.url + "/metrics").text
            assert "OTEL_EXPORTER_OTLP_PROTOCOL is not followed" in output
        (_, headers, path) = collector.posts[0]
        assert headers["authorization"] == "Bearer a-secret" and path == "/tenant/spans"
        (resource,) = collector.resources()
        assert resource["zone"] == "eu 1" and resource["service.instance.id"]
        assert "a-secret" not in json.dumps(collector.calls)


def test_a_collector_that_nobody_vouches_for_gets_nothing():
    with Collector(https=True) as collector:
        with Server("--otlp-endpoint", collector.url) as server:
            ask_once(server)
            settle(server, DROPPED, 4)
            assert "certificate" in server.output()
        assert not collector.posts


def test_what_variables_ask_in_vain_stops_no_start():
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    with Server(env=environment) as server:
        answer = post(server, "chat/completions", CHAT)
        assert "traceresponse" not in answer.headers and DROPPED not in server.metrics()
        assert "no spans are sent" in server.output() and "http/json" in server.output()


def test_a_server_ends_while_a_collector_has_it_wait():
    with Collector((503, {"Retry-After": "3600"}, b"")) as collector:
        with Server("--otlp-endpoint", collector.url) as server:
            ask_once(server)
            while not collector.posts:
                time.sleep(0.02)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 15, "it waited for the collector"


def test_an_address_that_cannot_be_is_refused_at_the_start():
    with pytest.raises(RuntimeError) as error:
        with Server("--otlp-endpoint", "collector.example:4318"):
            pass
    assert "otlp-endpoint" in str(error.value)
