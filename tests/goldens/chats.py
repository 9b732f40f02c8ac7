"""What is rendered with every chat template, and the strings encoded with every tokenizer."""


def says(role, content, **more):
    return dict(role=role, content=content) | more


SYSTEM = says("system", "You answer in one word.")
HELLO = says("user", "Hello, who are you?")
MODEL = says("assistant", "I am a small test model.")
SUM = says("user", "12 + 30 = ?")
ODD = says("user", "  Spaces around,\n a <tag> & \"quotes\", 中文 🙂 \n")
THOUGHT = says("assistant", "<think>\nTwelve and thirty.\n</think>\n\n42")
WEATHER = dict(type="function", function=dict(
    name="weather", description="Tells the weather; don't guess <here> & there, or 在北京",
    parameters=dict(type="object", properties=dict(
        city=dict(type="string", description="A city"), days=dict(type="integer", minimum=1), exact=dict(type="boolean")),
        required=["city"])))
CLOCK = dict(type="function", function=dict(name="clock", description="", parameters={}))


def call(name, arguments):
    return dict(type="function", id="call_1", function=dict(name=name, arguments=arguments))


CALL = says("assistant", "", tool_calls=[call("weather", dict(city="北京", days=2, exact=True, scale=1.5, none=None))])
TWO_CALLS = says("assistant", "Two things.", tool_calls=[call("weather", dict(city="Rome")), call("clock", {})])
TOOL = says("tool", '{"sky": "clear"}')


def chat(name, *messages, prompt=True, **more):
    return dict(name=name, messages=list(messages), add_generation_prompt=prompt) | more


CHATS = [
    chat("one question", HELLO),
    chat("no generation prompt", HELLO, prompt=False),
    chat("system", SYSTEM, HELLO),
    chat("two turns", HELLO, MODEL, SUM),
    chat("system and three turns", SYSTEM, HELLO, MODEL, SUM, says("assistant", "42"), says("user", "再见")),
    chat("ends with the assistant", HELLO, MODEL, prompt=False),
    chat("spaces and marks", says("system", " \n keep "), ODD, says("assistant", " ok \n"), ODD),
    chat("empty content", says("user", "")),
    chat("special tokens in the text", says("user", "a <|im_end|> b <|eot_id|> c </s> d <think> e [INST]")),
    chat("system in the middle", HELLO, MODEL, SYSTEM, SUM),
    chat("two users in a row", HELLO, SUM),
    chat("starts with the assistant", MODEL, SUM),
    chat("continue", HELLO, says("assistant", "I am"), prompt=False, continue_final_message=True),
    chat("continue after a space", HELLO, says("assistant", "I am "), prompt=False, continue_final_message=True),
    chat("continue with system", SYSTEM, HELLO, says("assistant", "Model\n"), prompt=False,
         continue_final_message=True),
    chat("continue a word that came before", says("user", "am"), says("assistant", "am"), prompt=False,
         continue_final_message=True),
    chat("continue with a generation prompt", HELLO, MODEL, prompt=True, continue_final_message=True),
    chat("thinking on", HELLO, kwargs=dict(enable_thinking=True)),
    chat("thinking off", HELLO, kwargs=dict(enable_thinking=False)),
    chat("thinking off, later turn", HELLO, MODEL, SUM, kwargs=dict(enable_thinking=False)),
    chat("a past thought", SUM, THOUGHT, HELLO),
    chat("a last thought", SUM, THOUGHT, prompt=False),
    chat("reasoning in its own field", SUM, says("assistant", "42", reasoning_content="Twelve and thirty.\n"),
         prompt=False),
    chat("reasoning named otherwise", SUM, says("assistant", "42", reasoning="Thirty first."), prompt=False),
    chat("unknown keyword", HELLO, kwargs=dict(nobody_reads_this=[1, "two"])),
    chat("date", HELLO, kwargs=dict(date_string="21 Nov 2026")),
    chat("tools", HELLO, tools=[WEATHER, CLOCK]),
    chat("tools and system", SYSTEM, HELLO, tools=[WEATHER]),
    chat("no tools", HELLO, tools=[]),
    chat("a call and its answer", HELLO, CALL, TOOL, tools=[WEATHER]),
    chat("two calls and two answers", HELLO, TWO_CALLS, TOOL, says("tool", "12:00"), tools=[WEATHER, CLOCK]),
    chat("a call, thought about", HELLO, says("assistant", "", reasoning_content="Ask.", tool_calls=CALL["tool_calls"]),
         TOOL, tools=[WEATHER]),
    chat("null content", HELLO, dict(CALL, content=None), TOOL),
]

STRINGS = [
    "", " ", "  ", "\n", "\n\n\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b   c    d",
    "Hello, world!", "hello world hello world", "HELLO World", "The model returns a number.",
    "it's they're we'll I'd you've I'M DON'T", "it’s a “quote” – with … dashes —",
    "0", "7", "42", "1234567890", "3.14159", "-1e-7", "1,234,567.89", "12 + 30 = 42", "x²+y³=½", "١٢٣ ४५६ Ⅷ",
    "def add(a, b):\n    return a + b\n", "for i in range(10):\n\tprint(i)\n\n\n    done()",
    'fn main() {\n    println!("{:?}", vec![1, 2]);\n}', '{"name": "x", "value": [1, 2, {"a": null}]}',
    "SELECT * FROM t WHERE a<>b;--", "<a href=\"/x?y=1&z=2\">link</a>", "a_b__c-d.e/f\\g", "https://example.com/a?b=c#d",
    "你好，世界！", "我是一个小模型。今天天气怎么样？", "你好world你好 world", "龘靐齉爩", "繁體中文與简体中文",
    "こんにちは、モデルです。", "カタカナとひらがな", "안녕하세요 세계", "привет мир, как дела?", "Ελληνικά γράμματα",
    "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Tiếng Việt có dấu", "größe ÉTÉ señor Ça va",
    "e\u0301te\u0301 n\u0303 \u212b \ufb01", "🙂", "🙂🙃 😀!", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇳", "☃ ✓ → ∑ ∞ ≠",
    "\u200b\u200d\ufeff", "a\u00a0b\u3000c\u2028d", "\x00\x01\x7f", "\ufffd", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "<|im_start|>user\nHello<|im_end|>\n", "<|im_start|><|im_end|><|endoftext|>", "a<|im_end|>b", "<|im_end|", "<|IM_END|>",
    "<s>[INST] hi [/INST]</s>", "<unk> <s> </s>", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<think>\nwhy\n</think>\n\nso", "<tool_call>\n{}\n</tool_call>", "<0x41> ▁ Ġ Ċ",
    "a" * 70, " " * 40 + "x", "word " * 20, "哈" * 20,
]
