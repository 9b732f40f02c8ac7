"""What applications are built with: each library says what plain HTTP says, names our errors as its
own, and ends a request by leaving it."""

import httpx
import pytest

from conftest import sdk
from program import COMMANDS, Program
from server import Server

QUESTION = "What is 17 + 25?"
# The class and the status of an error, as each library names them.
ERRORS = {
    "langchain": {
        400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError",
        503: "InternalServerError",
    },
    "litellm": {
        400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError",
        503: "ServiceUnavailableError",
    },
    "node-openai": {
        400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError",
        503: "InternalServerError",
    },
    "ai-sdk": dict.fromkeys((400, 401, 404, 503), "APICallError"),
}


@pytest.fixture(scope="module", params=COMMANDS)
def library(request):
    with Program(request.param) as program:
        program.name = request.param
        yield program


def ask(library, do, server, model="default", **more):
    asked = {
        "url": server.url + "/v1", "key": "any", "model": model, "text": QUESTION,
        "temperature": 0, "max_tokens": 32, "extra": {}, **more,
    }
    return library.ask(do, **asked)


def plain(server, path, body):
    """Text, reason and usage of an answer without any library."""
    body = {"model": "default", "temperature": 0, "max_tokens": 32, **body}
    answer = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60).raise_for_status().json()
    choice, usage = answer["choices"][0], answer["usage"]
    return {
        "text": choice["text"] if "text" in choice else choice["message"]["content"],
        "finish": choice["finish_reason"],
        "usage": {"prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]},
    }


def test_chat_whole_and_streamed(server, library):
    want = plain(server, "chat/completions", {"messages": [{"role": "user", "content": QUESTION}]})
    assert want["text"] and want["finish"] == "stop"
    assert ask(library, "chat", server) == want
    streamed = ask(library, "chat_stream", server)
    assert streamed.pop("pieces", 0) > 1, streamed
    assert streamed == want


def test_completions_whole_and_streamed(server, library):
    # The AI SDK makes a conversation of a text.
    as_chat = {"prompt": "user:\n1, 2, 3,\n\nassistant:\n", "stop": ["\nuser:"]}
    prompt = as_chat if library.name == "ai-sdk" else {"prompt": "1, 2, 3,"}
    want = plain(server, "completions", {"max_tokens": 12, **prompt})
    assert want["text"]
    asked = {"text": "1, 2, 3,", "max_tokens": 12}
    assert ask(library, "completion", server, **asked) == want
    streamed = ask(library, "completion_stream", server, **asked)
    assert streamed["pieces"] > 1 and streamed["text"] == want["text"], streamed


def assert_error(library, status, told):
    assert ERRORS[library.name][status] in told.get("error", ()), told
    assert told["status"] == status, told


@pytest.mark.parametrize("do", ["chat", "chat_stream", "completion"])
def test_errors_have_the_class_that_the_library_has_for_them(server, library, do):
    told = ask(library, do, server, temperature=9)
    assert_error(library, 400, told)
    assert "temperature" in told["message"]
    told = ask(library, do, server, model="no-such-model")
    assert_error(library, 404, told)
    assert "no-such-model" in told["message"]


def test_a_wrong_key(library):
    with Server("--api-key", "right") as server:
        assert_error(library, 401, ask(library, "chat", server, key="wrong"))
        assert ask(library, "chat", server, key="right")["text"]


def test_a_full_queue(library):
    """One sequence runs and 63 wait: whoever wants 64 places has to come again."""
    with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "64") as server:
        hold = sdk(server).completions.create(
            model="default", prompt="a", max_tokens=400, n=64, stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(hold))
        assert_error(library, 503, ask(library, "chat", server, extra={"n": 64}))
        hold.close()
        server.wait_idle()


def test_leaving_a_stream_ends_the_request(server, library):
    before = server.wait_idle()
    room = sdk(server).models.list().data[0].model_extra["max_model_len"]
    more = {"max_tokens": room - 64, "extra": {"n": 16, "ignore_eos": True}}
    assert ask(library, "leave", server, **more) == {"pieces": 3}
    after = server.wait_idle()
    name = "pagoda_generation_tokens_total"
    assert 0 < after[name] - before[name] < 16 * (room - 64) // 2, "it ran on after its client left"
