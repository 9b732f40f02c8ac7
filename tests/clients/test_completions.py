"""Plain completions through the official SDK: every form of prompt, echo, log-probabilities."""

import httpx
import pytest


def tokenize(server, text):
    return httpx.post(server.url + "/tokenize", json={"prompt": text}).json()["tokens"]


def test_a_prompt_as_text_and_as_ids(client, server, model):
    ask = dict(model=model, temperature=0, max_tokens=8)
    text = client.completions.create(prompt="1, 2, 3,", **ask)
    ids = client.completions.create(prompt=tokenize(server, "1, 2, 3,"), **ask)
    assert text.object == "text_completion" and text.id.startswith("cmpl-")
    assert text.choices[0].text == ids.choices[0].text
    assert text.usage == ids.usage


def test_lists_of_prompts_are_answered_in_order(client, server, model):
    ask = dict(model=model, temperature=0, max_tokens=6)
    prompts = ["1, 2, 3,", "Hello", "你好"]
    alone = [client.completions.create(prompt=prompt, **ask).choices[0].text for prompt in prompts]
    texts = client.completions.create(prompt=prompts, **ask)
    ids = client.completions.create(prompt=[tokenize(server, p) for p in prompts], **ask)
    for answer in (texts, ids):
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert [choice.text for choice in answer.choices] == alone
    twice = client.completions.create(prompt=prompts[:2], n=2, **ask)
    assert [choice.text for choice in twice.choices] == [alone[0]] * 2 + [alone[1]] * 2


def test_a_stream_of_several_prompts_adds_up(client, model):
    ask = dict(model=model, temperature=0, max_tokens=6, prompt=["1, 2, 3,", "Hello"])
    whole = client.completions.create(**ask)
    texts, last = ["", ""], None
    for chunk in client.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ):
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens


def test_echo_and_logprobs_cover_prompt_and_answer(client, server, model):
    prompt = "1, 2, 3,"
    answer = client.completions.create(
        model=model, prompt=prompt, echo=True, logprobs=3, max_tokens=4, temperature=0
    )
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert choice.text.startswith(prompt)
    num_tokens = answer.usage.total_tokens
    for values in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs,
                   logprobs.text_offset):
        assert len(values) == num_tokens
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        assert choice.text[offset:].startswith(token)


def test_echo_of_nothing_more_scores_the_prompt(client, model):
    answer = client.completions.create(
        model=model, prompt="1, 2, 3,", echo=True, logprobs=1, max_tokens=0, temperature=0
    )
    assert answer.choices[0].text == "1, 2, 3," and answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens


def test_the_prompt_scored_alone_equals_the_prompt_scored_with_an_answer(client, model):
    ask = dict(model=model, prompt="Hello, who are you?", echo=True, logprobs=2, temperature=0)
    first = client.completions.create(**ask, max_tokens=0).choices[0].logprobs.token_logprobs
    again = client.completions.create(**ask, max_tokens=5).choices[0].logprobs.token_logprobs
    assert again[: len(first)] == first


def test_logit_bias_forces_and_forbids(client, server, model):
    token = tokenize(server, "7")[0]
    ask = dict(model=model, prompt="1, 2, 3,", temperature=0, max_tokens=3)
    forced = client.completions.create(**ask, logit_bias={str(token): 100})
    assert forced.choices[0].text == "777"
    plain = client.completions.create(**ask, extra_body={"return_token_ids": True})
    first = plain.choices[0].model_extra["token_ids"][0]
    forbidden = client.completions.create(
        **ask, logit_bias={str(first): -100}, extra_body={"return_token_ids": True}
    )
    assert first not in forbidden.choices[0].model_extra["token_ids"]


def test_stop_token_ids_and_min_tokens(client, server, model):
    ask = dict(model=model, prompt="1, 2, 3,", temperature=0, max_tokens=12)
    ids = client.completions.create(
        **ask, extra_body={"return_token_ids": True, "ignore_eos": True}
    ).choices[0].model_extra["token_ids"]
    stop = ids[4]
    stopped = client.completions.create(
        **ask, extra_body={"stop_token_ids": [stop], "ignore_eos": True}
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens == ids.index(stop) + 1
    later = client.completions.create(
        **ask, extra_body={"stop_token_ids": [stop], "ignore_eos": True, "min_tokens": 8}
    )
    assert later.usage.completion_tokens >= 8


@pytest.mark.parametrize("text", ["", "plain", " spaces  and\ttabs\n", "你好,世界 🙂", "<|im_end|>"])
def test_tokenize_and_detokenize_are_inverse(server, text):
    ids = tokenize(server, text)
    back = httpx.post(server.url + "/detokenize", json={"tokens": ids}).json()["prompt"]
    assert back == text
