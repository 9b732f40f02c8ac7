//! Shapes of models, as published: what kernels are measured over.

use super::Size;

/// A decoder's layer, its head, and how many experts it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) hidden: usize,
    pub(super) num_q: usize,
    pub(super) num_kv: usize,
    pub(super) head_dim: usize,
    pub(super) intermediate: usize,
    pub(super) vocab: usize,
}

const FULL: [Shape; 3] = [
    Shape {
        name: "Llama-3.2-1B",
        hidden: 2048,
        num_q: 32,
        num_kv: 8,
        head_dim: 64,
        intermediate: 8192,
        vocab: 128_256,
    },
    Shape {
        name: "Llama-3.1-8B",
        hidden: 4096,
        num_q: 32,
        num_kv: 8,
        head_dim: 128,
        intermediate: 14_336,
        vocab: 128_256,
    },
    Shape {
        name: "Qwen3-32B",
        hidden: 5120,
        num_q: 64,
        num_kv: 8,
        head_dim: 128,
        intermediate: 25_600,
        vocab: 151_936,
    },
];

const TINY: [Shape; 1] = [Shape {
    name: "tiny",
    hidden: 64,
    num_q: 2,
    num_kv: 1,
    head_dim: 64,
    intermediate: 96,
    vocab: 300,
}];

/// A weight of a layer: its name, rows and columns, and whether neighbouring rows are joined.
pub(super) struct Product {
    pub(super) name: &'static str,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) joins: bool,
}

impl Shape {
    /// Those that a suite of this size measures.
    pub(super) fn all(size: Size) -> &'static [Shape] {
        match size {
            Size::Full => &FULL,
            Size::Tiny => &TINY,
        }
    }

    /// Every product of a layer, and the head's.
    pub(super) fn products(&self) -> [Product; 5] {
        let product = |name, n, k, joins| Product { name, n, k, joins };
        let (hidden, q) = (self.hidden, self.num_q * self.head_dim);
        [
            product("qkv", q + 2 * self.num_kv * self.head_dim, hidden, false),
            product("output", hidden, q, false),
            product("gate and up", 2 * self.intermediate, hidden, true),
            product("down", hidden, self.intermediate, false),
            product("head", self.vocab, hidden, false),
        ]
    }
}

/// Rows of a step: decodes of one to many sequences, and a chunk of a prompt.
pub(super) fn rows(size: Size) -> &'static [usize] {
    match size {
        Size::Full => &[1, 2, 4, 8, 16, 32, 64, 512],
        Size::Tiny => &[1, 3],
    }
}

/// Sequences, the keys of each, and the rows that each brings.
pub(super) fn attentions(size: Size) -> &'static [[usize; 3]] {
    match size {
        Size::Full => &[
            [1, 1024, 1],
            [1, 32_768, 1],
            [8, 4096, 1],
            [8, 32_768, 1],
            [32, 4096, 1],
            [128, 1024, 1],
            [128, 4096, 1],
            [1, 512, 512],
            [1, 2048, 2048],
            [1, 8192, 8192],
            [4, 8192, 512],
        ],
        Size::Tiny => &[[2, 70, 1], [1, 20, 20]],
    }
}
