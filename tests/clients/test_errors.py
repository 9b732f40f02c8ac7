"""Errors: their class in the SDK, their shape on the wire, and keys."""

import httpx
import openai
import pytest

from conftest import sdk
from server import Server

GREETING = [{"role": "user", "content": "Hello!"}]


def assert_shape(answer, status, code=None):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    if code is not None:
        assert error["code"] == code
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", 3), ("temperature", "warm"), ("top_p", -1), ("n", 0), ("n", 10_000),
        ("max_tokens", -1), ("stop", [1]), ("stop", ["x"] * 1000), ("seed", 1.5), ("stream", "yes"),
        ("messages", "Hello"), ("messages", [{"role": "user"}, 3]), ("logit_bias", {"x": 1}),
        ("top_logprobs", 10_000), ("presence_penalty", 5), ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}), ("store", True), ("modalities", ["audio"]),
    ],
)
def test_a_wrong_value_is_a_bad_request_that_names_the_field(server, model, field, value):
    body = {"model": model, "messages": GREETING, **{field: value}}
    if field == "top_logprobs":
        body["logprobs"] = True
    error = assert_shape(httpx.post(server.url + "/v1/chat/completions", json=body), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0].split("[")[0] == field


def test_sdk_classes(client, model):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=GREETING, temperature=9)
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="no-such-model", messages=GREETING)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=[])


def test_a_prompt_beyond_the_context(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="word " * 50_000, max_tokens=1)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="word", max_tokens=10_000_000)
    assert error.value.code == "context_length_exceeded"


def test_unknown_fields_are_ignored_and_told(server, model):
    body = {"model": model, "messages": GREETING, "max_tokens": 1, "no_such_field": 1}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert "no_such_field" in answer.headers["x-pagoda-ignored"]


def test_request_ids_go_in_and_out(server):
    answer = httpx.get(server.url + "/v1/models", headers={"X-Request-Id": "my-own-id.7"})
    assert answer.headers["x-request-id"] == "my-own-id.7"
    first, second = (httpx.get(server.url + "/v1/models") for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_template_arguments_cannot_replace_messages(server, model):
    body = {"model": model, "messages": GREETING, "chat_template_kwargs": {"messages": []}}
    assert_shape(httpx.post(server.url + "/v1/chat/completions", json=body), 400)


def test_keys_from_flag_environment_and_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("from-file\n")
    flags = ("--api-key", "from-flag", "--api-key-file", file)
    with Server(*flags) as server:
        for key in ("from-flag", "from-file"):
            assert sdk(server, api_key=key).models.list().data
        with pytest.raises(openai.AuthenticationError) as error:
            sdk(server, api_key="wrong").models.list()
        assert error.value.code == "invalid_api_key"
        assert_shape(httpx.get(server.url + "/v1/models"), 401)
        assert httpx.get(server.url + "/health").status_code == 200
        assert "from-f" not in server.output()
    with Server(env={"PAGODA_API_KEY": "from-env"}) as server:
        assert sdk(server, api_key="from-env").models.list().data
        with pytest.raises(openai.AuthenticationError):
            sdk(server, api_key="from-flag").models.list()


def test_cross_origin_calls_need_the_list():
    with Server("--allowed-origins", "https://a.example") as server:
        asked = {"Access-Control-Request-Method": "POST"}
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            answer = httpx.options(
                server.url + "/v1/chat/completions", headers={"Origin": origin, **asked}
            )
            granted = answer.headers.get("access-control-allow-origin")
            assert (granted == origin) == allowed, (origin, granted)


def test_no_prompt_and_no_key_reaches_the_log():
    with Server(env={"PAGODA_LOG": "debug"}) as server:
        client = sdk(server, api_key="a-key-to-keep")
        client.chat.completions.create(
            model="default", max_tokens=2, messages=[{"role": "user", "content": "a word to keep"}]
        )
        httpx.post(server.url + "/v1/completions", content=b'{"prompt": "a word to keep')
        server.stop()
        assert "a word to keep" not in server.output()
        assert "a-key-to-keep" not in server.output()
