"""Chat completions through the official SDK."""

import concurrent.futures

import pytest

GREETING = [{"role": "user", "content": "Hello!"}]


def test_an_answer_has_the_shape_that_the_sdk_expects(client, model):
    answer = client.chat.completions.create(model=model, messages=GREETING, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == model and answer.created > 1_700_000_000
    assert choice.index == 0 and choice.message.role == "assistant"
    assert choice.message.content.strip()
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_adds_up_to_the_whole_answer(client, model):
    ask = dict(model=model, messages=GREETING, temperature=0)
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop" and set(reasons[:-1]) <= {None}
    assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_without_stream_options_no_chunk_tells_usage(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=GREETING, stream=True))
    assert len(chunks) > 2 and all(chunk.usage is None for chunk in chunks)


def test_content_may_be_a_list_of_text_parts(client, model):
    parts = [{"type": "text", "text": "Hello!"}]
    ask = dict(model=model, temperature=0)
    listed = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **ask)
    plain = client.chat.completions.create(messages=GREETING, **ask)
    assert listed.choices[0].message.content == plain.choices[0].message.content
    assert listed.usage.prompt_tokens == plain.usage.prompt_tokens


def test_the_prompt_of_a_second_request_is_cached(client, model):
    words = " ".join(f"{n} plus {n + 1}," for n in range(60))
    ask = dict(model=model, max_tokens=2, temperature=0)
    messages = [{"role": "user", "content": f"Repeat: {words}"}]
    client.chat.completions.create(messages=messages, **ask)
    usage = client.chat.completions.create(messages=messages, **ask).usage
    cached = usage.prompt_tokens_details.cached_tokens
    assert usage.prompt_tokens // 2 < cached < usage.prompt_tokens
    salted = client.chat.completions.create(
        messages=messages, extra_body={"cache_salt": "another tenant"}, **ask
    )
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_max_tokens_ends_with_length(client, model):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model=model, messages=GREETING, extra_body={"ignore_eos": True}, **{name: 3}
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_n_choices_are_told_apart(client, model):
    # Past its end the model has nothing to say, so that the choices differ.
    ask = dict(
        model=model, messages=GREETING, n=3, temperature=2, seed=7, max_tokens=40,
        extra_body={"ignore_eos": True},
    )
    answer = client.chat.completions.create(**ask)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [""] * 3
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1


def test_a_seed_repeats_and_another_differs(client, model):
    def ask(seed):
        answer = client.chat.completions.create(
            model=model, messages=GREETING, temperature=1.8, seed=seed, max_tokens=24,
            extra_body={"ignore_eos": True},
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(1, 6)}) > 1


def test_seeded_answers_do_not_depend_on_the_company(client, model):
    def ask(seed):
        answer = client.chat.completions.create(
            model=model, messages=GREETING, temperature=1.5, seed=seed, max_tokens=20, logprobs=True,
        )
        choice = answer.choices[0]
        return choice.message.content, [token.logprob for token in choice.logprobs.content]

    alone = [ask(seed) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_logprobs_name_every_token_and_its_alternatives(client, model):
    answer = client.chat.completions.create(
        model=model, messages=GREETING, temperature=0, logprobs=True, top_logprobs=4, max_tokens=8
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 4
        best = token.top_logprobs[0]
        assert (best.token, best.logprob) == (token.token, token.logprob), "greedy takes the best"
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert bytes(token.bytes).decode(errors="replace") == token.token or "\ufffd" in token.token
    text = b"".join(bytes(token.bytes) for token in tokens).decode(errors="ignore")
    assert text.startswith(answer.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_never_leaks(client, model, stream):
    messages = [{"role": "user", "content": "Repeat: alpha beta gamma delta"}]
    ask = dict(model=model, messages=messages, temperature=0, max_tokens=60)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    assert len(whole) > 8
    stop = whole[4:7]
    answer = client.chat.completions.create(**ask, stop=["never said", stop], stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer if chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text == whole[: whole.index(stop)] and reason == "stop"


def test_a_stop_string_can_be_kept(client, model):
    ask = dict(model=model, messages=GREETING, temperature=0)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stop = whole[2:4]
    kept = client.chat.completions.create(
        **ask, stop=stop, extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].message.content == whole[: whole.index(stop) + len(stop)]


def test_sampling_extensions(client, model):
    def ask(**extra):
        answer = client.chat.completions.create(
            model=model, messages=GREETING, temperature=1.9, max_tokens=10, seed=3, extra_body=extra
        )
        return answer.choices[0].message.content

    greedy = client.chat.completions.create(
        model=model, messages=GREETING, temperature=0, max_tokens=10
    ).choices[0].message.content
    assert ask(top_k=1) == greedy
    assert ask(min_p=1.0) == greedy
    allowed = ask(allowed_token_ids=[5], ignore_eos=True)
    assert allowed == allowed[: len(allowed) // 10] * 10


def test_return_token_ids_round_trip(client, server, model):
    import httpx

    answer = client.chat.completions.create(
        model=model, messages=GREETING, temperature=0, extra_body={"return_token_ids": True}
    )
    ids = answer.choices[0].model_extra["token_ids"]
    text = httpx.post(server.url + "/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text.startswith(answer.choices[0].message.content)


def test_continue_final_message(client, model):
    messages = [*GREETING, {"role": "assistant", "content": "Once"}]
    answer = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=4,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert answer.usage.completion_tokens > 0


def test_characters_are_never_split(client, model):
    messages = [{"role": "user", "content": "重复:你好,世界,今天天气很好"}]
    texts = []
    for chunk in client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=60, stream=True
    ):
        texts += [choice.delta.content or "" for choice in chunk.choices]
    assert not any("\ufffd" in text for text in texts)
    assert any("\u4e00" <= c <= "\u9fff" for c in "".join(texts))
