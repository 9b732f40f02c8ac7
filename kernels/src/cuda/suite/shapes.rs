//! Shapes of models, as published: what kernels are measured over, ours and others'.

use super::Size;
use crate::dtype::DType;
use crate::ops::Heads;

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

impl Product {
    /// What a figure of it is called.
    pub(super) fn what(&self, shape: &Shape, rows: usize) -> String {
        let Product { name, n, k, .. } = self;
        format!("{} {name} [{n}, {k}], {rows} rows", shape.name)
    }
}

impl Shape {
    /// Of its attention.
    pub(super) fn heads(&self) -> Heads {
        let Shape { num_q, num_kv, head_dim, .. } = *self;
        Heads { num_q, num_kv, head_dim }
    }

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

/// Rows of a step in a type that few models are served in.
pub(super) fn format_rows(size: Size, format: DType) -> &'static [usize] {
    match (size, format) {
        // One kernel each, and what cuts rows into tiles.
        (Size::Full, DType::F32) => &[1, 2, 4, 8, 64],
        (Size::Full, _) => &[1, 2, 4, 16, 32, 64, 512],
        (Size::Tiny, _) => &[3],
    }
}

/// Rows of a step whose bits may not depend on their number: where that costs most, and least.
pub(super) fn deterministic_rows(size: Size) -> &'static [usize] {
    match size {
        Size::Full => &[1, 512],
        Size::Tiny => &[2],
    }
}

/// What a figure of attention is called.
pub(super) fn attention_what(name: &str, [seqs, keys, rows]: [usize; 3]) -> String {
    format!("{name} attention, {seqs} × {rows} rows over {keys} keys")
}

/// One figure of the suite that other programs can be asked for, too.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerTask {
    /// `rows` rows `[rows, k]` times a weight `[n, k]`, in bf16.
    Product {
        /// What our figure is called.
        what: String,
        /// Rows of x.
        rows: usize,
        /// Rows of the weight.
        n: usize,
        /// Columns of both.
        k: usize,
    },
    /// One layer's attention of sequences of one length, causal, in bf16.
    Attention {
        /// What our figure is called.
        what: String,
        /// Sequences.
        seqs: usize,
        /// Keys of each.
        keys: usize,
        /// Its last rows, which attend.
        rows: usize,
        /// Heads of queries,
        num_q: usize,
        /// of keys and values,
        num_kv: usize,
        /// and their size.
        head_dim: usize,
    },
}

/// Every product and attention that [`super::Part::Kernels`] measures.
pub fn peer_tasks(size: Size) -> Vec<PeerTask> {
    let mut tasks = Vec::new();
    for shape in Shape::all(size) {
        for &rows in rows(size) {
            tasks.extend(shape.products().map(|product| {
                let what = product.what(shape, rows);
                PeerTask::Product { what, rows, n: product.n, k: product.k }
            }));
        }
        let &Shape { num_q, num_kv, head_dim, .. } = shape;
        tasks.extend(attentions(size).iter().map(|&[seqs, keys, rows]| {
            let what = attention_what(shape.name, [seqs, keys, rows]);
            PeerTask::Attention { what, seqs, keys, rows, num_q, num_kv, head_dim }
        }));
    }
    tasks
}

/// Experts of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertShape {
    pub(super) name: &'static str,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) num_experts: usize,
    pub(super) num_chosen: usize,
}

/// The layer of experts that is measured.
pub(super) fn experts(size: Size) -> ExpertShape {
    match size {
        Size::Full => ExpertShape {
            name: "Qwen3-30B-A3B",
            hidden: 2048,
            intermediate: 768,
            num_experts: 128,
            num_chosen: 8,
        },
        Size::Tiny => ExpertShape {
            name: "tiny",
            hidden: 64,
            intermediate: 32,
            num_experts: 4,
            num_chosen: 2,
        },
    }
}

/// Rows of a step with experts.
pub(super) fn expert_rows(size: Size) -> &'static [usize] {
    match size {
        Size::Full => &[1, 8, 32, 64, 128, 512, 2048],
        Size::Tiny => &[1, 2, 3],
    }
}

/// Rows of a step with quantized weights.
pub(super) fn quantized_rows(size: Size) -> &'static [usize] {
    match size {
        Size::Full => &[1, 2, 4, 16, 32, 64, 512],
        Size::Tiny => &[3],
    }
}

/// Vocabularies, and rows that are sampled.
pub(super) fn samplings(size: Size) -> (&'static [usize], &'static [usize]) {
    match size {
        Size::Full => (&[32_000, 128_256, 151_936], &[1, 64, 256]),
        Size::Tiny => (&[300], &[2]),
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

/// A decode and a prompt: what shows an attention kernel of few rows, and one of many.
pub(super) fn few_attentions(size: Size) -> &'static [[usize; 3]] {
    match size {
        Size::Full => &[[32, 4096, 1], [1, 2048, 2048]],
        Size::Tiny => &[[2, 70, 1]],
    }
}

const fn heads(num_q: usize, num_kv: usize, head_dim: usize) -> Heads {
    Heads { num_q, num_kv, head_dim }
}

const OTHER_HEADS: [Heads; 4] =
    [heads(32, 32, 80), heads(32, 32, 96), heads(32, 8, 112), heads(16, 8, 256)];
const TINY_HEADS: [Heads; 1] = [heads(2, 1, 48)];

/// Heads of sizes that the shapes above have not, and one that has no kernel of its own.
pub(super) fn other_heads(size: Size) -> &'static [Heads] {
    match size {
        Size::Full => &OTHER_HEADS,
        Size::Tiny => &TINY_HEADS,
    }
}
