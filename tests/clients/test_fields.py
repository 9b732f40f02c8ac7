"""Every field of the official SDK has a class in the server's one table of fields.

The server lists names that it does not know in X-Pagoda-Ignored, also when their value is null,
which otherwise means absent. So one request with every field of the SDK tells all that are
missing; a new SDK with a new field fails here."""

import inspect

import httpx
import pytest
from openai.resources.chat.completions import Completions as Chat
from openai.resources.completions import Completions
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

# Arguments of the SDK's own that never go into a body.
LOCAL = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
ROUTES = {
    "/v1/chat/completions": (
        Chat, chat_create_params, {"messages": [{"role": "user", "content": "Hello!"}]}
    ),
    "/v1/completions": (Completions, completion_create_params, {"prompt": "1, 2,"}),
}


def sdk_fields(resource, params):
    fields = set(inspect.signature(resource.create).parameters) - LOCAL
    for kind in ("NonStreaming", "Streaming"):
        typed = next(
            getattr(params, name)
            for name in dir(params)
            if name.endswith("CreateParams" + kind)
        )
        for base in typed.__mro__ if hasattr(typed, "__mro__") else [typed]:
            fields |= set(getattr(base, "__annotations__", {}))
    return fields


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_of_the_sdk_has_a_class(server, path):
    resource, params, required = ROUTES[path]
    fields = sdk_fields(resource, params)
    assert len(fields) >= 17, "the SDK's signature was not understood"
    body = {**dict.fromkeys(fields), **required, "max_tokens": 1}
    answer = httpx.post(server.url + path, json={**body, "surely_unknown": None})
    assert answer.status_code == 200, answer.text
    ignored = {name.strip() for name in answer.headers["x-pagoda-ignored"].split(",")}
    assert ignored == {"surely_unknown"}


# A value of each refused field that asks for something, so that the refusal is seen.
REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"mode": "on"},
    "prediction": {"type": "content", "content": "x"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "web_search_options": {},
}
# A value of each accepted field that asks for nothing that we lack.
ACCEPTED = {
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "response_format": {"type": "text"},
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": False,
    "tool_choice": "none",
    "tools": [],
    "user": "u",
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_we_lack_is_refused_by_name(server, field):
    body = {"messages": [{"role": "user", "content": "Hello!"}], field: REFUSED[field]}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text


def test_what_asks_for_nothing_is_accepted(server):
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1, **ACCEPTED}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "x-pagoda-ignored" not in answer.headers
