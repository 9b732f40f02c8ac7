"""LiteLLM as a library: `completion` and `text_completion` with a provider of the OpenAI API."""

import litellm

from lines import serve


def options_of(asked, provider):
    return {
        "model": f"{provider}/{asked['model']}", "api_base": asked["url"],
        "api_key": asked["key"], "temperature": asked["temperature"],
        "max_tokens": asked["max_tokens"], "max_retries": 0, "num_retries": 0, "timeout": 60,
        "extra_body": asked["extra"],
    }


def chat_options(asked):
    messages = [{"role": "user", "content": asked["text"]}]
    return {"messages": messages, **options_of(asked, "openai")}


def usage_of(usage):
    return {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}


def chat(asked):
    answer = litellm.completion(**chat_options(asked))
    choice = answer.choices[0]
    return {
        "text": choice.message.content, "finish": choice.finish_reason,
        "usage": usage_of(answer.usage),
    }


def chat_stream(asked):
    stream = litellm.completion(
        stream=True, stream_options={"include_usage": True}, **chat_options(asked)
    )
    text, finish, usage, pieces = "", None, None, 0
    for chunk in stream:
        usage = getattr(chunk, "usage", None) or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            text += choice.delta.content or ""
            pieces += bool(choice.delta.content)
    return {"text": text, "finish": finish, "usage": usage_of(usage), "pieces": pieces}


def text_options(asked):
    return {"prompt": asked["text"], **options_of(asked, "text-completion-openai")}


def completion(asked):
    answer = litellm.text_completion(**text_options(asked))
    choice = answer.choices[0]
    return {"text": choice.text, "finish": choice.finish_reason, "usage": usage_of(answer.usage)}


def completion_stream(asked):
    stream = litellm.text_completion(stream=True, **text_options(asked))
    pieces = [chunk.choices[0].text or "" for chunk in stream if chunk.choices]
    return {"text": "".join(pieces), "pieces": len([piece for piece in pieces if piece])}


def leave(asked):
    stream = litellm.completion(stream=True, **chat_options(asked))
    pieces = [next(stream) for _ in range(3)]
    # Its wrapper has nothing to close: the stream of the OpenAI SDK below it has.
    stream.completion_stream.close()
    return {"pieces": len(pieces)}


serve({
    "chat": chat, "chat_stream": chat_stream, "leave": leave,
    "completion": completion, "completion_stream": completion_stream,
})
