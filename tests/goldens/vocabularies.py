"""Vocabularies as published before tokenizer.json, and what sentencepiece and tiktoken themselves make of text.

Imported by make_text.py. Models of sentencepiece and ranks of tiktoken are trained here, small, in the layout of the
families that have them; ids come from those two packages, a part between special tokens at a time, as the code that
came with such checkpoints has it. Templates are the engine's own (families/templates), rendered by transformers; their
ids are held against prompts that are built the way each family documents, without any template.
"""

import base64
import io
import json
import random
import re
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2
from tiktoken._educational import bpe_train

from chats import CHATS, STRINGS
from corpus import corpus

TEMPLATES = Path(__file__).parents[2] / "engine/src/model/families/templates"
SPACE = "▁"
# What a client may send that is no UTF-8; it is read with U+FFFD in place of what is broken.
BROKEN = [b"\xff\xfea", b"caf\xc3", b"\xe4\xbd \xe4\xbd\xa0", b"\xf0\x9f\x99", b"a\xed\xa0\x80b", b"\xc0\xaf", b"ok\x80\x81 ok"]
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def scrambled(count=24):
    """Runs and mixtures that no one would write."""
    draw = random.Random(11)
    parts = ["a", "aa", "ab", "ba", " ", "  ", "\n", "\n\n", "\t", "\t\t", "0", "12", "345", "the", " model", "▁", "你好", "🙂", "é",
             "e\u0301", "ﬁ", "①", "½", "\u3000", "\u00a0", "<", ">", "</", "<h1>", "<0x41>", "sop", " eop ", "'s", "'LL", ".", "!?"]
    return ["".join(draw.choices(parts, k=draw.randrange(2, 14))) for _ in range(count)]


# What a text's characters are replaced by: a few of NFKC's rules, and one that drops a character.
REPLACED = {"ﬁ": "fi", "①": "1", "½": "1⁄2", "\u3000": " ", "\u00a0": " ", "\u200b": "", "e\u0301": "é", "n\u0303": "ñ",
            "！": "!", "，": ",", "？": "?", "\u212b": "Å", "\u2028": " ", "\t": " ", "²": "2", "³": "3", "Ⅷ": "VIII", "…": "..."}


def replacements():
    """The rules in a file of sentencepiece's form."""
    points = lambda text: " ".join(f"{ord(c):X}" for c in text)
    file = tempfile.NamedTemporaryFile("w", suffix=".tsv")
    file.write("".join(f"{points(old)}\t{points(new)}\n" for old, new in REPLACED.items()))
    file.flush()
    return file


def train_sentencepiece(vocab_size, **options):
    lines = [line for text in corpus() for line in text.split("\n") if line.strip()]
    model = io.BytesIO()
    defaults = dict(
        model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=1.0, num_threads=1,
        max_sentencepiece_length=16, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, **(defaults | options))
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # the name of a file that is gone
    return proto.SerializeToString()


def train_ranks(vocab_size, pattern):
    text = "\n".join(corpus()[:700])
    return bpe_train(text, vocab_size, pattern, visualise=None)


class Sentencepiece:
    """Text to ids and back through sentencepiece, part by part."""

    def __init__(self, model, appended=(), strips=(), first_space="each", begin=("<s>",), known=(), kept=()):
        self.whole = sentencepiece.SentencePieceProcessor(model_proto=model)
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        self.adds_space = proto.normalizer_spec.add_dummy_prefix
        self.drops_spaces = proto.normalizer_spec.remove_extra_whitespaces
        proto.normalizer_spec.add_dummy_prefix = False
        self.inside = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        special = [piece.piece for piece in proto.pieces if piece.type in (2, 3)] + list(known)
        self.special = {text: self.whole.piece_to_id(text) for text in special}
        self.special |= {text: len(proto.pieces) + i for i, text in enumerate(appended)}
        self.texts = {i: text for text, i in self.special.items()}
        words = {text: rf"(?<!\w){text}(?!\w)" for text in self.special if text.isalnum()}
        self.pattern = re.compile("|".join(
            words.get(text, re.escape(text)) + (r"\s*" if text in strips else "")
            for text in sorted(self.special, key=len, reverse=True)))
        self.first_space, self.begin, self.kept = first_space, begin, kept

    def encode(self, text, add_special=True):
        ids = [self.special[token] for token in self.begin] if add_special else []
        end = 0
        for match in [*self.pattern.finditer(text), None]:
            part = text[end:match.start() if match else len(text)]
            spaced = self.first_space == "each" or end == 0
            ids += (self.whole if spaced else self.inside).encode(part)
            if match:
                ids.append(self.special[match.group().rstrip()])
                end = match.end()
        return ids

    def plain(self, text):
        """Behind a special token; whatever the text spells is text."""
        return (self.whole if self.first_space == "each" else self.inside).encode(text)

    def decode(self, ids, skip=False):
        if not any(i in self.texts for i in ids):
            return self.whole.decode(ids)
        out = b""
        for i in ids:
            if i in self.texts:
                out += b"" if skip and self.texts[i] not in self.kept else self.texts[i].encode()
            elif self.whole.is_byte(i):
                out += bytes([int(self.whole.id_to_piece(i)[3:5], 16)])
            else:
                out += self.whole.id_to_piece(i).replace(SPACE, " ").encode()
        text = out.decode()
        if self.drops_spaces:
            return text.lstrip(" ")
        return text.removeprefix(" ") if self.adds_space else text

    def plain_ids(self):
        return [i for i in range(self.whole.vocab_size()) if i not in self.texts and not self.whole.is_control(i)]


class Tiktoken:
    """Text to ids and back through tiktoken."""

    def __init__(self, ranks, pattern, special, composed=False, begin=()):
        self.encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.special, self.composed, self.begin = special, composed, begin

    def encode(self, text, add_special=True):
        text = unicodedata.normalize("NFC", text) if self.composed else text
        begin = [self.special[token] for token in self.begin] if add_special else []
        return begin + self.encoding.encode(text, allowed_special="all")

    def plain(self, text):
        """Whatever the text spells is text."""
        return self.encoding.encode(text, disallowed_special=())

    def decode(self, ids, skip=False):
        kept = [i for i in ids if not (skip and i in self.special.values())]
        return self.encoding.decode(kept, errors="replace")

    def plain_ids(self):
        return list(range(min(self.special.values())))


# Prompts as the families document them: special tokens by name, and texts that are encoded one by one.

class Special(str):
    pass


def llama2(messages):
    if messages[0]["role"] == "system":
        first = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n{messages[1]['content']}"
        messages = [dict(role="user", content=first), *messages[2:]]
    parts = []
    for turn in range(0, len(messages), 2):
        asked = f"[INST] {messages[turn]['content'].strip()} [/INST]"
        if turn + 1 == len(messages):
            return parts + [Special("<s>"), asked]
        parts += [Special("<s>"), f"{asked} {messages[turn + 1]['content'].strip()} ", Special("</s>")]
    return parts


def mistral(messages):
    if messages[0]["role"] == "system":
        first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        messages = [dict(role="user", content=first), *messages[2:]]
    parts = [Special("<s>")]
    for turn in range(0, len(messages), 2):
        asked = f"[INST] {messages[turn]['content']} [/INST]"
        if turn + 1 == len(messages):
            return parts + [asked]
        parts += [f"{asked} {messages[turn + 1]['content']}", Special("</s>")]
    return parts


def phi3(messages):
    parts = []
    for message in messages:
        # The tokens take the white space behind them.
        parts += [Special(f"<|{message['role']}|>"), message["content"].lstrip(), Special("<|end|>")]
    return parts + [Special("<|assistant|>")]


def gemma(messages, system=""):
    parts = [Special("<bos>")]
    for message in messages:
        role = dict(user="user", assistant="model")[message["role"]]
        content = system + message["content"].strip()
        parts += [Special("<start_of_turn>"), f"{role}\n{content}", Special("<end_of_turn>"), "\n"]
        system = ""
    return parts + [Special("<start_of_turn>"), "model\n"]


def gemma3(messages):
    if messages[0]["role"] == "system":
        return gemma(messages[1:], messages[0]["content"] + "\n\n")
    return gemma(messages)


def chatml(messages):
    parts = []
    for message in messages:
        parts += [Special("<|im_start|>"), message["role"], "\n", message["content"], Special("<|im_end|>"), "\n"]
    return parts + [Special("<|im_start|>"), "assistant", "\n"]


def qwen(messages):
    if messages[0]["role"] != "system":
        messages = [dict(role="system", content="You are a helpful assistant."), *messages]
    return chatml(messages)


def chatglm3(messages):
    parts = [Special("[gMASK]"), Special("sop")]
    for message in messages:
        parts += [Special(f"<|{message['role']}|>"), "\n", message["content"]]
    return parts + [Special("<|assistant|>")]


def glm4(messages):
    parts = [Special("[gMASK]"), Special("<sop>")]
    for message in messages:
        parts += [Special(f"<|{message['role']}|>"), f"\n{message['content']}"]
    return parts + [Special("<|assistant|>")]


# The chats in which the template's tokens are others: where a text spells a special token, which is one in a rendered
# template, and where a text is empty, so that the space in front of it stands alone.
MEETING = {
    "qwen": {"special tokens in the text"},
    "chatml": {"special tokens in the text"},
    "chatglm3": {"empty content", "special tokens in the text"},
    "llama2": {"special tokens in the text"},
    "mistral": {"special tokens in the text"},
    "phi3": {"special tokens in the text"},
}


def styles():
    """folder: (files, reference, dialects of the engine)."""
    llama = train_sentencepiece(760)
    named = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    phi = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    first = len(sentencepiece_model_pb2.ModelProto.FromString(llama).pieces)
    entry = lambda text, **flags: dict(content=text, lstrip=False, normalized=False, rstrip=False, single_word=False,
                                       special=True) | flags
    runs = [SPACE * n for n in range(2, 9)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    gemma_model = train_sentencepiece(
        760, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>",
        user_defined_symbols=["<mask>", *turns, "\n\n", "\n\n\n", "\t\t", "\t\t\t", *runs, "<h1>", "</h1>"])
    glm_model = train_sentencepiece(700, bos_id=-1)
    glm = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    with replacements() as rules:
        unigram = train_sentencepiece(
            760, model_type="unigram", normalization_rule_tsv=rules.name, remove_extra_whitespaces=True,
            allow_whitespace_only_pieces=False)
    one, three = SPLIT.replace("DIGITS", r"\p{N}"), SPLIT.replace("DIGITS", r"\p{N}{1,3}")
    qwen_ranks, glm4_ranks = train_ranks(620, one), train_ranks(620, three)
    qwen_special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
    glm4_special = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
                    "<|assistant|>", "<|observation|>"]
    number = lambda ranks, tokens: {token: len(ranks) + i for i, token in enumerate(tokens)}
    lines = lambda ranks: b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    phi_config = named | dict(
        tokenizer_class="LlamaTokenizer", legacy=False, add_bos_token=True, eos_token="<|endoftext|>",
        added_tokens_decoder={"2": entry("</s>", rstrip=True, special=False)} | {
            str(first + i): entry(text, rstrip=text != "<|endoftext|>") for i, text in enumerate(phi)})
    return {
        "llama2_spm": (
            {"tokenizer.model": llama, "tokenizer_config.json": named | dict(tokenizer_class="LlamaTokenizer")},
            Sentencepiece(llama), ["llama2", "mistral"]),
        "phi3_spm": (
            {"tokenizer.model": llama, "tokenizer_config.json": phi_config},
            Sentencepiece(llama, phi, [*phi[1:], "</s>"], "once", kept=["</s>"]), ["phi3"]),
        "gemma_spm": (
            {"tokenizer.model": gemma_model, "tokenizer_config.json": dict(
                tokenizer_class="GemmaTokenizer", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
                pad_token="<pad>", additional_special_tokens=turns, add_bos_token=True)},
            Sentencepiece(gemma_model, begin=("<bos>",), known=turns), ["gemma", "gemma3"]),
        "chatglm3": (
            {"tokenizer.model": glm_model, "tokenizer_config.json": dict(
                tokenizer_class="ChatGLMTokenizer", remove_space=False, do_lower_case=False)},
            Sentencepiece(glm_model, glm, begin=("[gMASK]", "sop")), ["chatglm3"]),
        "unigram_spm": (
            {"tokenizer.model": unigram}, Sentencepiece(unigram), []),
        "qwen1": (
            {"qwen.tiktoken": lines(qwen_ranks), "tokenizer_config.json": dict(
                tokenizer_class="QWenTokenizer", model_max_length=8192)},
            Tiktoken(qwen_ranks, one, number(qwen_ranks, qwen_special), True), ["qwen", "chatml"]),
        "glm4": (
            {"tokenizer.model": lines(glm4_ranks), "tokenizer_config.json": dict(
                tokenizer_class="ChatGLM4Tokenizer", added_tokens_decoder={
                    str(i): entry(token) for token, i in number(glm4_ranks, glm4_special).items()})},
            Tiktoken(glm4_ranks, three, number(glm4_ranks, glm4_special), begin=("[gMASK]", "<sop>")), ["glm4"]),
    }


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, dict):
            content = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        (folder / name).write_bytes(content)


def encodings(reference):
    broken = [dict(bytes=text.hex(), text=text.decode("utf-8", "replace")) for text in BROKEN]
    for case in [dict(text=text) for text in STRINGS + scrambled()] + broken:
        ids, bare = reference.encode(case["text"]), reference.encode(case["text"], False)
        yield case | dict(ids=ids, bare_ids=bare, decoded=reference.decode(bare),
                          decoded_without_special=reference.decode(ids, True))


def decodings(reference):
    """Ids in any order, so that characters are broken off."""
    draw = random.Random(5)
    plain = reference.plain_ids()
    bytes_only = plain[:256] if isinstance(reference, Tiktoken) else [i for i in plain if reference.whole.is_byte(i)]
    for count in range(30):
        ids = draw.choices(draw.choice([plain, bytes_only, plain + 2 * bytes_only]), k=1 + count)
        yield dict(ids=ids, decoded=reference.decode(ids))


def built(reference, parts):
    ids = []
    for part in parts:
        ids += [reference.special[part]] if isinstance(part, Special) else reference.plain(part)
    return ids


def templates(reference, dialect, render):
    """Each chat through the template, held against the prompt that is built by hand."""
    source = (TEMPLATES / f"{dialect}.jinja").read_text()
    for chat in CHATS:
        if any(key in chat for key in ("tools", "kwargs")) or any("content" not in m for m in chat["messages"]):
            continue
        outcome = render(source, chat)
        if "text" in outcome:
            outcome["ids"] = reference.encode(outcome["text"], False)
            if chat["add_generation_prompt"]:
                by_hand = built(reference, globals()[dialect](chat["messages"]))
                meets = chat["name"] in MEETING.get(dialect, ())
                if (by_hand == outcome["ids"]) == meets:
                    raise SystemExit(f"{dialect}: {chat['name']}: {outcome['text']!r}\n{by_hand}\n{outcome['ids']}")
        yield chat | outcome
