//! Templates that follow the grammar: an input's bytes choose at each fork of it.
//!
//! A template that was changed at random seldom compiles; these do, and so reach the interpreter,
//! its filters and methods. Texts that a template builds for itself do not grow from turn to turn of
//! a loop here.

use std::panic::catch_unwind;

use super::templates::rendered;
use super::{Target, seeds};

/// Choices.
pub(super) const GRAMMAR: Target =
    Target { name: "grammar", run: grammar, seeds: seeds::choices, words: &[] };

fn grammar(input: &[u8]) -> String {
    let mut writer = Writer { choices: input, text: String::new(), depth: 0 };
    while !writer.choices.is_empty() {
        writer.block();
    }
    match catch_unwind(|| rendered(&writer.text)) {
        Ok(told) => told,
        // The input itself shows nobody what it stands for.
        Err(_) => panic!("of this template:\n{}", writer.text),
    }
}

struct Writer<'a> {
    choices: &'a [u8],
    text: String,
    depth: u32,
}

const DEPTH_MAX: u32 = 5;
const NAMES: [&str; 14] = [
    "messages",
    "message",
    "message.content",
    "message['role']",
    "messages[0]",
    "tools",
    "bos_token",
    "add_generation_prompt",
    "loop.index0",
    "loop.last",
    "ns.a",
    "x",
    "nothing",
    "messages[-1].content",
];
const LITERALS: [&str; 16] = [
    "'a b'",
    "''",
    "0",
    "1",
    "-1",
    "2.5",
    "true",
    "none",
    "[]",
    "{}",
    "[1, 'b', [2]]",
    "{'k': 1, 'role': 'u'}",
    "9223372036854775807",
    "'é🙂'",
    "'%s %d'",
    "1e300",
];
const FILTERS: [&str; 40] = [
    "trim",
    "upper",
    "lower",
    "title",
    "capitalize",
    "length",
    "tojson",
    "tojson(indent=1)",
    "default('d')",
    "join(', ')",
    "list",
    "items",
    "first",
    "last",
    "int",
    "float",
    "string",
    "abs",
    "safe",
    "escape",
    "reverse",
    "sort",
    "unique",
    "dictsort",
    "min",
    "max",
    "sum",
    "round(1)",
    "replace('a', 'b')",
    "indent(2)",
    "selectattr('role')",
    "rejectattr('role', 'equalto', 'user')",
    "map(attribute='role')",
    "map('upper')",
    "select('defined')",
    "batch(2)",
    "slice(2)",
    "groupby('role')",
    "lines",
    "split(' ')",
];
const TESTS: [&str; 14] = [
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "mapping",
    "iterable",
    "sequence",
    "true",
    "odd",
    "divisibleby(2)",
    "sameas(1)",
    "in([1, 'a'])",
    "startingwith('a')",
];
const METHODS: [&str; 18] = [
    ".strip()",
    ".split()",
    ".split('a', 1)",
    ".startswith('a')",
    ".endswith(('a', 'b'))",
    ".upper()",
    ".replace('a', 'bc')",
    ".get('role')",
    ".get('x', 1)",
    ".items()",
    ".keys()",
    ".values()",
    ".lstrip('W')",
    ".rstrip()",
    ".title()",
    ".find('i')",
    ".count('a')",
    ".splitlines()",
];
const OPERATORS: [&str; 16] = [
    " + ", " - ", " / ", " // ", " % ", " == ", " != ", " < ", " <= ", " in ", " not in ", " and ",
    " or ", " > ", " >= ", " ~ ",
];
const WORDS: [&str; 8] = ["<|user|>\n", " ", "\n\n", "text", "{", "}", "é", "%"];

impl Writer<'_> {
    /// The next choice among so many; the first once the bytes are used up.
    fn choose(&mut self, count: usize) -> usize {
        let Some((first, rest)) = self.choices.split_first() else { return 0 };
        self.choices = rest;
        usize::from(*first) % count
    }

    fn one_of(&mut self, words: &[&str]) {
        let at = self.choose(words.len());
        self.text.push_str(words[at]);
    }

    fn say(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// A tag, with or without marks of white space.
    fn tag(&mut self, write: impl FnOnce(&mut Self)) {
        let (open, close) = [("{% ", " %}"), ("{%- ", " -%}"), ("{%- ", " %}")][self.choose(3)];
        self.say(open);
        write(self);
        self.say(close);
    }

    fn block(&mut self) {
        self.depth += 1;
        let count = if self.depth > DEPTH_MAX { 1 } else { 1 + self.choose(4) };
        for _ in 0..count {
            if self.choices.is_empty() {
                break;
            }
            self.statement();
        }
        self.depth -= 1;
    }

    fn statement(&mut self) {
        let kind = if self.depth > DEPTH_MAX { self.choose(2) } else { self.choose(13) };
        match kind {
            0 => self.one_of(&WORDS),
            1 | 2 => {
                self.say("{{ ").expression();
                self.say(" }}");
            }
            3 => self.condition(),
            4 | 5 => self.repetition(),
            6 => self.tag(|writer| writer.say("set x = ").value()),
            7 => self.tag(|writer| {
                writer.say("set ns = namespace(a=").value();
                writer.say(")");
            }),
            8 => self.tag(|writer| {
                writer.say("set ns.a = ");
                writer.one_of(&LITERALS);
            }),
            9 => {
                self.tag(|writer| {
                    writer.say("macro m(a, b='c')");
                });
                self.block();
                self.tag(|writer| {
                    writer.say("endmacro");
                });
                self.say("{{ m(").expression();
                self.say(") }}");
            }
            10 => {
                self.tag(|writer| {
                    writer.say("filter ");
                    writer.one_of(&FILTERS);
                });
                self.block();
                self.tag(|writer| {
                    writer.say("endfilter");
                });
            }
            11 => {
                self.tag(|writer| {
                    writer.say("generation");
                });
                self.block();
                self.tag(|writer| {
                    writer.say("endgeneration");
                });
            }
            _ => self.one_of(&[
                "{{ raise_exception('no ' ~ bos_token) }}",
                "{{ strftime_now('%Y-%m-%d') }}",
                "{# a comment #}",
                "{% raw %}{{ x }}{% endraw %}",
                "{% set x %}block{% endset %}",
                "{{ undefined_function(1) }}",
                "{{ range(3)|list }}",
                "{{ dict(a=1) }}",
                "{{ '%s'|format(x) }}",
            ]),
        }
    }

    fn condition(&mut self) {
        self.tag(|writer| writer.say("if ").expression());
        self.block();
        if self.choose(2) == 1 {
            self.tag(|writer| writer.say("elif ").expression());
            self.block();
        }
        if self.choose(2) == 1 {
            self.tag(|writer| {
                writer.say("else");
            });
            self.block();
        }
        self.tag(|writer| {
            writer.say("endif");
        });
    }

    fn repetition(&mut self) {
        let over = [
            "message in messages",
            "message in messages[::-1]",
            "x in range(7)",
            "k, v in tools[0]|items",
        ];
        self.tag(|writer| {
            writer.say("for ");
            writer.one_of(&over);
            if writer.choose(3) == 2 {
                writer.say(" if ").expression();
            }
        });
        self.block();
        match self.choose(6) {
            4 => {
                self.say("{% if loop.first %}{% continue %}{% endif %}");
            }
            5 => {
                self.say("{% break %}");
            }
            _ => {}
        }
        self.tag(|writer| {
            writer.say("endfor");
        });
    }

    fn expression(&mut self) {
        self.depth += 1;
        let kind = if self.depth > DEPTH_MAX + 3 { self.choose(2) } else { self.choose(11) };
        match kind {
            0 | 1 | 8 => self.one_of(&NAMES),
            2 => self.one_of(&LITERALS),
            3 | 9 => {
                self.operand();
                self.say("|");
                self.one_of(&FILTERS);
            }
            4 => {
                self.operand();
                self.one_of(&METHODS);
            }
            5 => {
                self.operand();
                self.one_of(&OPERATORS);
                self.operand();
            }
            6 => {
                self.operand();
                self.one_of(&[" is ", " is not "]);
                self.one_of(&TESTS);
            }
            7 => {
                self.operand();
                self.one_of(&[
                    "[0]",
                    "[-1]",
                    "[1:]",
                    "[:-1]",
                    "['role']",
                    "[::2]",
                    "[99999999999]",
                    ".a.b",
                ]);
            }
            _ => {
                self.operand();
                self.say(" if ").operand();
                self.say(" else ").operand();
            }
        }
        self.depth -= 1;
    }

    /// What a variable may be given: never made of one, or a text would grow from one to the next.
    fn value(&mut self) {
        match self.choose(2) {
            0 => self.one_of(&LITERALS),
            _ => self.one_of(&[
                "messages",
                "messages[0]",
                "messages[-1].content",
                "tools",
                "bos_token",
            ]),
        }
        if self.choose(2) == 1 {
            self.say("|");
            self.one_of(&FILTERS);
        }
    }

    fn operand(&mut self) {
        self.say("(").expression();
        self.say(")");
    }
}
