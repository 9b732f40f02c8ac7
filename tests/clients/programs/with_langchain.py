"""LangChain: ChatOpenAI and OpenAI of langchain-openai, as an application uses them."""

from langchain_openai import ChatOpenAI, OpenAI

from lines import serve


def model_of(kind, asked):
    return kind(
        base_url=asked["url"], api_key=asked["key"], model=asked["model"], max_retries=0,
        timeout=60, temperature=asked["temperature"], max_tokens=asked["max_tokens"],
        extra_body=asked["extra"] or None,
    )


def usage_of(message):
    usage = message.usage_metadata or {}
    return {"prompt": usage.get("input_tokens"), "completion": usage.get("output_tokens")}


def chat(asked):
    message = model_of(ChatOpenAI, asked).invoke([("user", asked["text"])])
    finish = message.response_metadata["finish_reason"]
    return {"text": message.content, "finish": finish, "usage": usage_of(message)}


def chat_stream(asked):
    whole, pieces = None, 0
    for chunk in model_of(ChatOpenAI, asked).stream([("user", asked["text"])], stream_usage=True):
        whole = chunk if whole is None else whole + chunk
        pieces += bool(chunk.content)
    finish = whole.response_metadata["finish_reason"]
    return {"text": whole.content, "finish": finish, "usage": usage_of(whole), "pieces": pieces}


def completion(asked):
    answer = model_of(OpenAI, asked).generate([asked["text"]])
    choice, usage = answer.generations[0][0], answer.llm_output["token_usage"]
    return {
        "text": choice.text,
        "finish": choice.generation_info["finish_reason"],
        "usage": {"prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]},
    }


def completion_stream(asked):
    pieces = list(model_of(OpenAI, asked).stream(asked["text"]))
    return {"text": "".join(pieces), "pieces": len(pieces)}


def leave(asked):
    stream = model_of(ChatOpenAI, asked).stream([("user", asked["text"])])
    pieces = [next(stream) for _ in range(3)]
    stream.close()
    return {"pieces": len(pieces)}


serve({
    "chat": chat, "chat_stream": chat_stream, "leave": leave,
    "completion": completion, "completion_stream": completion_stream,
})
