"""Makes tests/goldens/tokenizers: tokenizers and chat templates in many styles, and what others make of text.

Run by hand; tests never run it. Each folder has the files that a published checkpoint of that style has. templates.json
holds rendered chats and their ids, encodings.json holds encoded and decoded strings.

    python make_text.py
"""

import json
import shutil
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import vocabularies
from chats import CHATS, STRINGS
from corpus import corpus

HERE = Path(__file__).parent / "tokenizers"
WORDS = 360  # tokens beside the bytes and the special ones
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def byte_level(split):
    """Byte-level BPE as GPT-2 has it, after a split by pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=256 + WORDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def qwen(more=()):
    tokenizer = byte_level(QWEN_SPLIT)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHATML])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in more])
    return tokenizer


def llama3():
    tokenizer = byte_level(LLAMA3_SPLIT)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA3])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True),
        processors.TemplateProcessing(
            single=f"{LLAMA3[0]} $A", pair=f"{LLAMA3[0]} $A {LLAMA3[0]}:1 $B:1",
            special_tokens=[(LLAMA3[0], tokenizer.token_to_id(LLAMA3[0]))])])
    parts = json.loads(tokenizer.to_str())
    parts["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(parts))


def sentencepiece_style():
    """Llama 2: spaces become a mark, unknown characters fall back to bytes, the first space is dropped again."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=WORDS + 200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + list(model["vocab"])
    tokenizer = Tokenizer(models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in pieces[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


# Chat templates, in our own words and with the published ones' structure.

LLAMA2_TEMPLATE = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = \
messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must take turns: user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "01 Jan 2025" %}
{%- endif %}
{#- The system message is taken out, so that it always comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is defined and tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is defined and tools is not none %}
    {{- "Answer with a call of one of these functions, as JSON.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time, please.") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nFunctions you may call:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nA call is JSON within <tool_call></tool_call>.<|im_end|>\\n" }}
"""

QWEN25_TEMPLATE = QWEN_TOOLS + """\
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a small test model.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3_TEMPLATE = QWEN_TOOLS + """\
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def special(content):
    return dict(__type="AddedToken", content=content, lstrip=False, normalized=False, rstrip=False, single_word=False)


def build_styles():
    """folder: (tokenizer, fields of tokenizer_config.json, template, whether the template is a file of its own)."""
    thinking = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    chatml = dict(bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", add_bos_token=False)
    return {
        "llama2": (sentencepiece_style(), dict(
            bos_token=special("<s>"), eos_token=special("</s>"), unk_token=special("<unk>"), add_bos_token=True,
            add_eos_token=False, legacy=False), LLAMA2_TEMPLATE, False),
        "llama3": (llama3(), dict(bos_token=LLAMA3[0], eos_token="<|eot_id|>", clean_up_tokenization_spaces=True),
                   LLAMA3_TEMPLATE, True),
        "qwen2.5": (qwen(), chatml, QWEN25_TEMPLATE, False),
        "qwen3": (qwen(thinking), chatml, QWEN3_TEMPLATE, True),
    }


def write_folder(name, tokenizer, config, template, own_file):
    folder = HERE / name
    folder.mkdir(parents=True)
    parts = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(parts, ensure_ascii=False, separators=(",", ":")) + "\n")
    defaults = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=2048,
                    clean_up_tokenization_spaces=False)
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in parts["added_tokens"]}
    config = defaults | config | dict(added_tokens_decoder=added)
    if own_file:
        (folder / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def render(tokenizer, chat, template=None):
    """One golden: the text and its ids, or the template's own error."""
    options = {k: v for k, v in chat.items() if k in ("tools", "add_generation_prompt", "continue_final_message")}
    options |= chat.get("kwargs", {}) | dict(chat_template=template)
    try:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, **options)
        ids = tokenizer.apply_chat_template(chat["messages"], tokenize=True, **options)["input_ids"]
        return dict(text=text, ids=ids)
    except (TemplateError, ValueError) as error:
        raised = type(error) is TemplateError  # by the template's raise_exception; its words reach the user
        return {"error" if raised else "refused": str(error).splitlines()[0]}


def encode(tokenizer, text):
    ids = tokenizer.encode(text)
    bare = tokenizer.encode(text, add_special_tokens=False)
    return dict(text=text, ids=ids, bare_ids=bare, decoded=tokenizer.decode(bare),
                decoded_without_special=tokenizer.decode(ids, skip_special_tokens=True))


def write_lines(path, values):
    """JSON with one golden a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n]\n")


def agree(tokenizer, cases):
    """Two references agree, but for texts whose first space transformers takes for its own."""
    for case in cases:
        if not case["text"].startswith((" ", "▁")) and tokenizer.encode(case["text"]) != case["ids"]:
            raise SystemExit(f"transformers differs: {case}")


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    chats, encodings = [], []
    for name, style in build_styles().items():
        tokenizer = write_folder(name, *style)
        print(name, len(tokenizer), "tokens")
        chats += [dict(folder=name) | chat | render(tokenizer, chat) for chat in CHATS]
        encodings += [dict(folder=name) | encode(tokenizer, text) for text in STRINGS]
    decodings = []
    for name, (files, reference, dialects) in vocabularies.styles().items():
        vocabularies.write(HERE / name, files)
        cases = [dict(folder=name) | case for case in vocabularies.encodings(reference)]
        if name == "phi3_spm":
            agree(AutoTokenizer.from_pretrained(HERE / name), cases)
        encodings += cases
        decodings += [dict(folder=name) | case for case in vocabularies.decodings(reference)]
        for dialect in dialects:
            # Which tokenizer renders does not matter: the ids are the reference's.
            renders = lambda source, chat: render(tokenizer, chat, source)
            cases = vocabularies.templates(reference, dialect, renders)
            chats += [dict(folder=name, dialect=dialect) | case for case in cases]
        print(name)
    write_lines(HERE / "templates.json", chats)
    write_lines(HERE / "encodings.json", encodings)
    write_lines(HERE / "decodings.json", decodings)


if __name__ == "__main__":
    main()
