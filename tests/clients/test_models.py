"""What the server says of itself: models, health, readiness, version, metrics, the page."""

import httpx
import openai
import pytest

from server import Server


def test_the_list_of_models_and_one_model(client, model):
    models = client.models.list().data
    assert [entry.id for entry in models] == [model]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("no-such-model")
    assert error.value.code == "model_not_found"


def test_the_model_may_be_left_out(server):
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


def test_several_names_serve_one_model():
    with Server("--served-model-name", "first", "second") as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="any")
        assert [entry.id for entry in client.models.list().data] == ["first", "second"]
        answer = client.completions.create(model="second", prompt="1, 2,", max_tokens=1)
        assert answer.usage.completion_tokens == 1


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/"])
def test_open_paths_answer(server, path):
    answer = httpx.get(server.url + path)
    assert answer.status_code == 200 and answer.content
    assert httpx.head(server.url + path).status_code == 200


def test_metrics_count_tokens_and_requests(client, server, model):
    before = server.wait_idle()
    answer = client.completions.create(
        model=model, prompt="1, 2, 3,", max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    after = server.wait_idle()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["pagoda_generation_tokens_total"] == 5
    assert grown["pagoda_prompt_tokens_total"] == answer.usage.prompt_tokens
    assert grown["pagoda_request_success_total"] == 1
    assert grown["pagoda_time_to_first_token_seconds_count"] == 1
    assert grown["pagoda_inter_token_latency_seconds_count"] == 4


def test_metrics_speak_vllm_when_asked():
    with Server("--metrics-compat", "vllm") as server:
        metrics = server.metrics()
        for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
            assert metrics[name] == 0
