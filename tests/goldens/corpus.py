"""Text made from word lists, on which the small tokenizers are trained."""

import random

SUBJECTS = "the model,a small server,our engine,every request,the reader,this token,one block,the cache".split(",")
VERBS = "returns,computes,waits for,writes,reads,shares,frees,keeps,streams".split(",")
OBJECTS = "a number,the answer,its blocks,the next word,an error,two lists,the prompt,their keys".split(",")
CHINESE = "你好,世界,我是,一个,小模型,请问,今天,天气,怎么样,计算,加,减,等于,谢谢,再见,排序,中文".split(",")
JAPANESE = "こんにちは,ありがとう,モデル,です,ます,日本語".split(",")
OTHERS = "привет мир,как дела,bonjour à tous,où est l'été,größe und maß,señor niño,ça va".split(",")
ROLES = ["system\nYou are a helpful assistant.", "user\nHello, who are you?", "assistant\nI am a small test model."]


def sentence(draw):
    words = [draw.choice(SUBJECTS), draw.choice(VERBS), draw.choice(OBJECTS)]
    text = " ".join(words)
    return text[0].upper() + text[1:] + draw.choice([".", "!", "?", ", and it's done.", "; they don't."])


def code(draw):
    name = draw.choice(["add", "total", "reply", "items"])
    return draw.choice([
        f"def {name}(a, b):\n    return a + b\n", f"fn {name}(x: i32) -> i32 {{\n    x * 2\n}}\n",
        f'{{"name": "{name}", "value": [1, 2, 3]}}\n', f"for i in range(10):\n\tprint(i, {name})\n"])


def line(draw):
    a, b = draw.randrange(100), draw.randrange(100)
    return draw.choice([
        sentence(draw), sentence(draw), code(draw), f"{a} + {b} = {a + b}", "".join(draw.choices(CHINESE, k=4)) + "。",
        "".join(draw.choices(JAPANESE, k=2)), draw.choice(OTHERS), draw.choice(ROLES) + "\n"])


def corpus():
    draw = random.Random(7)
    return [line(draw) for _ in range(6000)]
