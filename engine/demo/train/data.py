"""Generates every conversation the demo model is trained or tested on, from a seed.

It must never read text from outside this folder, and must never put a held-out
prompt into training: `held()` decides by a fixed hash of the operands, so the
same pair, list, phrase or range is held out in every wording and in every run.
"""
import hashlib
import json
import random

import phrases as P

WEIGHTS = {"add": 30, "sub": 34, "sort": 18, "repeat": 11, "count": 7, "items": 4,
           "json": 7, "who": 4, "greet": 6, "refuse": 4}
ONES_EN = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
           "fifteen sixteen seventeen eighteen nineteen").split()
TENS_EN = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS_ZH = "零一二三四五六七八九"


def lines(text):
    return text.replace("\n", "|").split("|")


T = {k: lines(v) for k, v in vars(P).items() if isinstance(v, str) and k.isupper() and k != "HANZI"}


def held(*key):
    """One in ten of all operands is held out, by a hash that does not depend on the run."""
    return hashlib.md5(repr(key).encode()).digest()[0] % 10 == 0


def word_en(n):
    return ONES_EN[n] if n < 20 else TENS_EN[n // 10] + ("-" + ONES_EN[n % 10] if n % 10 else "")


def word_zh(n):
    if n < 10:
        return DIGITS_ZH[n]
    ten = ("" if n < 20 else DIGITS_ZH[n // 10]) + "十"
    return ten + (DIGITS_ZH[n % 10] if n % 10 else "")


def wide(text):
    for a, b in zip(",?!:", "\uff0c\uff1f\uff01\uff1a"):
        text = text.replace(a, b)
    return text


class Gen:
    """Draws turns. `test` asks for held-out operands only, `unseen` for held-out wordings."""

    def __init__(self, seed, test=False, unseen=False):
        self.r, self.test, self.unseen = random.Random(seed), test, unseen

    # --- wording ---------------------------------------------------------
    def template(self, name, zh, extra=True):
        r = self.r
        if self.unseen:
            pool = [t for t in T[name.split("_")[0] + "_UNSEEN"] if zh == any(c > "\u2e80" for c in t)]
        else:
            pool = T[name + ("_ZH" if zh else "_EN")]
        return self.style(r.choice(pool), zh, extra)

    def style(self, t, zh, suffix=True):
        """Wrap, drop the final mark, lower the case: the ways people really type."""
        r = self.r
        if not self.test and r.random() < 0.2:
            t = r.choice(T["PRE_ZH"] if zh else T["PRE_EN"]) + t
        if suffix and not self.test and r.random() < 0.12 and not t.endswith(("}", "=", "=?")):
            t = t + ("" if t[-1] in ".?!。?" else "," if zh else ".") + r.choice(T["POST_ZH"] if zh else T["POST_EN"])
        x = r.random()
        if x < 0.45 and not zh:
            t = t.lower() if x < 0.3 else t
            if x > 0.12 and t[-1] in ".?!":
                t = t[:-1]
            if x < 0.2:
                t = t.replace(": ", " ").replace("'", "")
        if zh:
            if t[-1] in ".?!。?" and x < 0.4:
                t = t[:-1]
            if r.random() < 0.6:
                t = wide(t)
            if r.random() < 0.1:
                t = t.lower()
        return t

    def number(self, n, zh, words):
        return (word_zh(n) if zh else word_en(n)) if words else str(n)

    # --- sums ------------------------------------------------------------
    def pair(self):
        r = self.r
        while True:
            a, b = r.randint(0, 99), r.randint(0, 99)
            if not self.test and r.random() < 0.1:
                b = r.randint(0, 12)
            if held("pair", min(a, b), max(a, b)) == self.test:
                return a, b

    def add(self, zh):
        a, b = self.pair()
        w = self.r.random() < 0.12
        t = self.template("ADD", zh)
        if w and ("+" in t or "{b} added" in t):
            w = False
        return t.format(a=self.number(a, zh, w), b=self.number(b, zh, w)), str(a + b)

    def sub(self, zh):
        a, b = self.pair()
        if a < b and self.r.random() < 0.6:
            a, b = b, a
        t = self.template("SUB", zh)
        w = self.r.random() < 0.12 and "-" not in t
        return t.format(a=self.number(a, zh, w), b=self.number(b, zh, w)), str(a - b)

    # --- lists -----------------------------------------------------------
    def sort(self, zh):
        r = self.r
        while True:
            n = r.choice([2, 3, 3, 4, 4, 5, 5, 5])
            top = r.choice([9, 20, 99, 99, 99])
            xs = [r.randint(0, top) for _ in range(n)]
            if r.random() < 0.7 and len(set(xs)) < n:
                continue
            if held("sort", sorted(xs)) == self.test:
                break
        desc = r.random() < 0.3 and not self.unseen
        t = self.template("DESC" if desc else "SORT", zh)
        return t.format(x=self.listing(xs, zh)), ", ".join(map(str, sorted(xs, reverse=desc)))

    def listing(self, xs, zh):
        r = self.r
        sep = r.choice([", ", ", ", " ", " ", ",", "、", ",", "和"] if zh else [", ", ", ", ", ", " ", " ", " ", ",", "; "])
        s = sep.join(map(str, xs))
        if not zh and sep == ", " and len(xs) > 1 and r.random() < 0.25:
            s = ", ".join(map(str, xs[:-1])) + r.choice([" and ", ", and "]) + str(xs[-1])
        return s

    def count(self, zh):
        r = self.r
        while True:
            kind = "COUNT" if self.unseen else r.choice(["COUNT", "COUNT", "COUNT1", "DOWN"])
            n = r.randint(2, 11) if r.random() < 0.8 else r.randint(2, 20)
            a = 1 if kind == "COUNT1" or r.random() < 0.25 else r.randint(0, 40 if r.random() < 0.6 else 99 - n)
            b = a + n - 1
            if b > 99 or (kind == "COUNT1" and (n < 3 or self.test)):
                continue
            if kind == "COUNT1" or held("count", a, b) == self.test:
                break
        xs = list(range(a, b + 1))
        if kind == "DOWN":
            xs, a, b = xs[::-1], b, a
        t = self.template(kind, zh)
        w = r.random() < 0.1 and "-" not in t
        return t.format(a=self.number(a, zh, w), b=self.number(b, zh, w)), ", ".join(map(str, xs))

    def items(self, zh):
        r = self.r
        while True:
            n = r.randint(1, 9)
            pool = P.FRUITS_ZH if zh else P.WORDS
            xs = [r.choice(pool) for _ in range(n)]
            if held("items", xs) == self.test:
                break
        t = self.style(r.choice(T["ITEMS_ZH" if zh else "ITEMS_EN"]), zh, False)
        sep = r.choice(["、", ",", " ", ", "]) if zh else r.choice([", ", ", ", " ", ","])
        return t.format(x=sep.join(xs)), str(n)

    # --- phrases ---------------------------------------------------------
    def novel(self):
        """A word nobody has seen: syllables, or now and then plain letters and digits."""
        r = self.r
        if r.random() < 0.75:
            s = "".join(r.choice("b c d f g h j k l m n p r s t v w y z ch sh th br st tr pl gr".split()) + r.choice("a e i o u a e i o ee oo ai ou".split())
                        + r.choice(["", "", "n", "r", "s", "t", "l", "m", "ck", "ng"]) for _ in range(r.randint(1, 4)))
        else:
            s = "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 9)))
        x = r.random()
        return s.capitalize() if x < 0.2 else s.upper() if x < 0.25 else s

    def word(self, p_new):
        r = self.r
        if r.random() < p_new:
            return str(r.randint(0, 999)) if r.random() < 0.12 else self.novel()
        w = r.choice(P.WORDS)
        return w.capitalize() if r.random() < 0.12 else w

    def phrase_en(self):
        r = self.r
        p_new = r.choice([0, 0.1, 0.3, 0.6, 1])
        n = r.choice([1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 14])
        s = " ".join(self.word(p_new) + ("," if 0 < i < n - 1 and r.random() < 0.06 else "") for i in range(n))
        if r.random() < 0.25:
            s = s[0].upper() + s[1:]
        return s + r.choice(["", "", "", "", ".", "!", "?"])

    def phrase_zh(self):
        r = self.r
        if r.random() < 0.25:
            return r.choice(P.FRUITS_ZH + P.NAMES_ZH + P.CITIES_ZH) + r.choice(["", "在", "很", "和"]) + r.choice(P.FRUITS_ZH + P.COLORS_ZH)
        n = r.choice([1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16])
        s = "".join(chr(r.randint(0x4E00, 0x9F00)) if r.random() < 0.05 else r.choice(P.HANZI) for _ in range(n))
        if n > 5 and r.random() < 0.3:
            s = s[:n // 2] + "," + s[n // 2:]
        return s + r.choice(["", "", "", "", "。", "!", "?"])

    def repeat(self, zh):
        r = self.r
        while True:
            s = self.phrase_zh() if zh != (r.random() < 0.15) else self.phrase_en()
            if held("repeat", s) == self.test:
                break
        q = r.choice(['"%s"', '"%s"', "'%s'", "“%s”"]) if not zh else r.choice(["“%s”", '"%s"', "「%s」", "“%s”"])
        t = self.template("REPEAT", zh)
        return t.replace("{q}", q % s).replace("{x}", s), s

    # --- json ------------------------------------------------------------
    def field(self, zh):
        r = self.r
        k = r.choice(["name", "name", "name", "age", "age", "city", "color", "id", "price", "score", "count", "any", "any"])
        new = self.novel().capitalize()
        if k == "name":
            return k, r.choice(P.NAMES_ZH if zh else P.NAMES) if r.random() < 0.65 else new
        if k == "city":
            return k, r.choice(P.CITIES_ZH if zh else P.CITIES) if r.random() < 0.8 else new
        if k == "color":
            return k, r.choice(P.COLORS_ZH if zh else P.COLORS)
        if k == "any":
            k = r.choice(P.WORDS) if r.random() < 0.5 else self.novel().lower()
            return k, r.choice([r.randint(0, 99), r.choice(P.WORDS), True, False])
        return k, r.randint(1, 99) if r.random() < 0.8 else r.randint(100, 999)

    def json(self, zh):
        r = self.r
        x = 1 if self.unseen else r.random()
        if x < 0.05 and not self.test:
            return self.style(r.choice(T["SAMPLE_ZH" if zh else "SAMPLE_EN"]), zh), '{"name": "Pagoda", "language": "Rust"}'
        if x < 0.2:
            while True:
                xs = [r.randint(0, 99) for _ in range(r.randint(1, 5))] if r.random() < 0.6 else [r.choice(P.FRUITS_ZH if zh else P.WORDS) for _ in range(r.randint(1, 4))]
                if held("list", xs) == self.test:
                    break
            t = self.template("LIST", zh)
            return t.format(x=self.listing(xs, zh)), json.dumps(xs, ensure_ascii=False)
        while True:
            obj = dict(self.field(zh) for _ in range(r.choice([1, 2, 2, 2, 3])))
            if held("json", sorted(obj.items(), key=str)) == self.test:
                break
        return self.template("JSON", zh, False).replace("{f}", self.fields(obj, zh)), json.dumps(obj, ensure_ascii=False)

    def fields(self, obj, zh):
        r = self.r
        s = lambda v: json.dumps(v) if isinstance(v, bool) else str(v)
        key = (lambda k: r.choice(P.FIELDS_ZH[k].split("|")) if k in P.FIELDS_ZH else k) if zh else (lambda k: k)
        join = r.choice(["{}是{}", "{}为{}", "{}:{}", "{}={}", "{}{}", "{}: {}"] if zh else ["{} {}", "{} {}", "{}={}", "{}: {}", "{} is {}", "{} = {}"])
        if join == "{}{}" and not all(k in P.FIELDS_ZH for k in obj):
            join = "{}是{}"
        sep = r.choice([",", ",", ", ", "、"] if zh else [" and ", ", ", ", "])
        fs = [join.format(key(k), s(v)) for k, v in obj.items()]
        return fs[0] if len(fs) == 1 else sep.join(fs) if sep != " and " else ", ".join(fs[:-1]) + " and " + fs[-1]

    # --- fixed answers ---------------------------------------------------
    def who(self, zh):
        r = self.r
        while True:
            intent = r.choice(["id", "id", "id", "pagoda", "pagoda", "pagoda", "lang", "can", "can"])
            base = r.choice(lines(P.WHO[intent][zh]))
            if (base not in P.WHO_CORE and held("who", base)) == self.test:
                break
        core = base in P.WHO_CORE and r.random() < 0.4
        text = base
        if r.random() < 0.35 and not core:
            text = r.choice(T["WHO_PRE_ZH" if zh else "WHO_PRE_EN"]) + text
        text += r.choice(T["WHO_POST_ZH" if zh else "WHO_POST_EN"][:8 if core else None])
        return self.cased(text, zh), self.answer(P.WHO_ANSWER[intent], zh)

    def cased(self, text, zh):
        if zh:
            return wide(text) if self.r.random() < 0.6 else text
        if self.r.random() < 0.6:
            text = (text[0].upper() + text[1:]).replace("pagoda", "Pagoda").replace(" i ", " I ").replace("rust", "Rust")
        return text

    def answer(self, pair, zh):
        return wide(pair[1]) if zh else pair[0]

    def greet(self, zh):
        r = self.r
        while True:
            en, ans_en, cn, ans_zh = r.choice([P.FIXED[0]] * 3 + P.FIXED)
            base = r.choice(lines(cn if zh else en))
            if (base not in P.FIXED_CORE and held("greet", base)) == self.test:
                break
        end = r.choice(["", "", "", "?"]) if "how" in base or "吗" in base else r.choice(["", "", "", "!", "." if not zh else "。", "!"])
        return self.cased(base + end, zh), self.answer((ans_en, ans_zh), zh)

    def refuse(self, zh):
        r = self.r
        while True:
            x = r.random()
            if x < 0.4:
                t = r.choice(T["REFUSE_ZH" if zh else "REFUSE_EN"])
                v = {"c": r.choice(P.COUNTRIES_ZH if zh else P.COUNTRIES + P.CITIES), "n": r.choice(P.FRUITS_ZH if zh else P.WORDS)}
                ans = P.REFUSE_ANSWER
            elif x < 0.65:
                t, ans = r.choice(T["MUL_ZH" if zh else "MUL_EN"]), P.MATH_NO
                v = {"a": r.randint(0, 99), "b": r.randint(0, 99)}
            elif x < 0.92:
                t, ans = r.choice(T[r.choice(["ADD", "SUB"]) + ("_ZH" if zh else "_EN")]), P.MATH_NO
                v = {"a": r.randint(100, 9999 if r.random() < 0.3 else 999), "b": r.randint(0, 999)}
                if r.random() < 0.5:
                    v = {"a": v["b"], "b": v["a"]}
                if "+" in t and r.random() < 0.25:
                    v = {"a": r.randint(0, 99), "b": "%d + %d" % (r.randint(0, 99), r.randint(0, 99))}
            else:
                t, ans = r.choice(T["SORT_ZH" if zh else "SORT_EN"]), P.SORT_NO
                v = {"x": self.listing([r.randint(0, 99) for _ in range(r.randint(6, 9))], zh)}
            if held("refuse", sorted(v.items(), key=str), t.split("{")[0] if x < 0.4 else "") == self.test:
                return self.style(t, zh, False).format(**v), self.answer(ans, zh)

    # --- conversations ---------------------------------------------------
    def turn(self, zh):
        task = self.r.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return getattr(self, task)(zh)

    def conversation(self, turns):
        """A list of messages; one language for most chats, a system prompt for one in five."""
        r, zh = self.r, self.r.random() < 0.45
        mixed = r.random() < 0.2
        out = [{"role": "system", "content": r.choice(T["SYSTEMS"])}] if r.random() < 0.2 else []
        for _ in range(turns):
            q, a = self.turn(r.random() < 0.5 if mixed else zh)
            out += [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        return out

    def short(self):
        return self.conversation(self.r.choice([1, 1, 2, 3, 4, 5]))

    def long(self):
        return self.conversation(self.r.randint(6, 14))


if __name__ == "__main__":
    g = Gen(1)
    for m in [m for _ in range(40) for m in g.short()]:
        print(m["role"][:4], "|", m["content"])
