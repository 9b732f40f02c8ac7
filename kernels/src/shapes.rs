//! Checks of recorded ops: every device refuses the same shapes, once, when an op is recorded.
//!
//! A wrong shape is remembered and refused when the executor starts, so that recording reads as
//! plain calls. Also gathers what a batch may hold, which [`crate::admission`] asks of each step.

use crate::batch::Batch;
use crate::device::{KvSpec, Limits};
use crate::error::KernelError;
use crate::ops::{
    Attention, Embed, Epilogue, GatherRows, Heads, Linear, Moe, Norm, NormRows, Ops, QkRopeStore,
    Sample,
};

/// A handle of activations, `[rows_max, cols]`.
pub(crate) trait TensorShape: Clone {
    /// Rows that it has room for.
    fn rows(&self) -> usize;
    /// Columns.
    fn cols(&self) -> usize;
    /// Whether two handles name one buffer.
    fn is(&self, other: &Self) -> bool;
}

/// A handle of parameters of one dimension.
pub(crate) trait VectorShape {
    /// Elements.
    fn len(&self) -> usize;
}

/// A handle of a packed matrix `[N, K]`.
pub(crate) trait MatrixShape {
    /// N.
    fn rows(&self) -> usize;
    /// K.
    fn cols(&self) -> usize;
}

/// A handle of packed matrices `[E, N, K]`.
pub(crate) trait ExpertsShape: MatrixShape {
    /// E.
    fn num_experts(&self) -> usize;
}

/// A handle of a group's cache.
pub(crate) trait CacheShape: Clone {
    /// The shape it was made with.
    fn spec(&self) -> KvSpec;
    /// Tokens per block.
    fn block_size(&self) -> usize;
    /// Whether two handles name one cache.
    fn is(&self, other: &Self) -> bool;
}

/// Which rows of the step an op runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// T, the rows of the step.
    Tokens,
    /// R, the rows that need logits.
    Logits,
}

impl Rows {
    /// Rows of this batch.
    pub(crate) fn of(self, batch: &Batch) -> usize {
        match self {
            Rows::Tokens => batch.num_tokens(),
            Rows::Logits => batch.logits.len(),
        }
    }

    /// The most rows of any batch.
    pub(crate) fn max(self, limits: &Limits) -> usize {
        match self {
            Rows::Tokens => limits.max_tokens,
            Rows::Logits => limits.max_logits_rows,
        }
    }
}

/// What a program's buffers allow a batch to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Rows of the smallest activation that holds T rows.
    pub(crate) tokens: usize,
    /// Rows of the smallest activation that holds R rows.
    pub(crate) logits_rows: usize,
    /// Rows of the smallest embedding table.
    pub(crate) vocab: usize,
    /// Positions of the shortest rope table.
    pub(crate) positions: usize,
}

/// The caches of one KV group, as a batch addresses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupShape {
    /// Index of the group in the batch.
    pub(crate) group: usize,
    /// Blocks.
    pub(crate) num_blocks: usize,
    /// Tokens of a block.
    pub(crate) block_size: usize,
}

/// Checks ops as they are recorded.
pub(crate) struct Shapes<O: Ops> {
    caches: Vec<(usize, O::Kv)>,
    /// Activations that hold R rows at this point of the program.
    logits_rows: Vec<O::Tensor>,
    bounds: Bounds,
    refused: Option<KernelError>,
}

impl<O: Ops> Shapes<O>
where
    O::Tensor: TensorShape,
    O::Vector: VectorShape,
    O::Weight: MatrixShape,
    O::Experts: ExpertsShape,
    O::Kv: CacheShape,
{
    /// Nothing recorded.
    pub(crate) fn new() -> Self {
        let max = usize::MAX;
        Shapes {
            caches: Vec::new(),
            logits_rows: Vec::new(),
            bounds: Bounds { tokens: max, logits_rows: max, vocab: max, positions: max },
            refused: None,
        }
    }

    /// The caches that ops use, each with its KV group.
    pub(crate) fn caches(&self) -> &[(usize, O::Kv)] {
        &self.caches
    }

    /// What batches may hold, or the first op whose shapes did not fit.
    pub(crate) fn finish(self) -> Result<(Bounds, Vec<GroupShape>), KernelError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let group = |(group, cache): &(usize, O::Kv)| GroupShape {
            group: *group,
            num_blocks: cache.spec().num_blocks,
            block_size: cache.block_size(),
        };
        Ok((self.bounds, self.caches.iter().map(group).collect()))
    }

    /// `embed`.
    pub(crate) fn embed(&mut self, op: &Embed<O>) {
        let (width, cols) = (op.table.cols(), op.x.cols());
        self.check("embed", width == cols, format_args!("a table of {width} into {cols} columns"));
        self.bounds.vocab = self.bounds.vocab.min(op.table.rows());
        self.writes(&op.x, Rows::Tokens);
    }

    /// `attention`.
    pub(crate) fn attention(&mut self, op: &Attention<O>) {
        self.check_heads("attention", op.heads, &op.qkv, &op.kv);
        self.uses_cache("attention", op.group, op.layer, &op.kv);
        let (want, cols) = (op.heads.num_q * op.heads.head_dim, op.out.cols());
        self.check("attention", cols == want, format_args!("out {cols} for {want}"));
        if let Some(sinks) = &op.sinks {
            let (len, heads) = (sinks.len(), op.heads.num_q);
            self.check("attention", len == heads, format_args!("{len} sinks for {heads} heads"));
        }
        self.uses(&op.qkv, Rows::Tokens);
        self.writes(&op.out, Rows::Tokens);
        let head_dim = op.heads.head_dim;
        let is_whole = head_dim.is_multiple_of(8) && op.window != Some(0);
        let window = op.window;
        self.check("attention", is_whole, format_args!("D {head_dim}, window {window:?}"));
    }

    /// `moe`.
    pub(crate) fn moe(&mut self, op: &Moe<O>) {
        if let Err(reason) = check_experts(op) {
            self.check("moe", false, format_args!("{reason}"));
        }
        let rows = self.bounds.tokens.min(op.x.rows());
        for tensor in [&op.x, &op.normed, &op.scores] {
            self.writes(tensor, Rows::Tokens);
        }
        for tensor in [&op.inner, &op.outer] {
            let most = tensor.rows() / op.num_chosen.max(1);
            self.check("moe", most >= rows, format_args!("scratch for {most} of {rows} rows"));
            self.bounds.tokens = self.bounds.tokens.min(most);
        }
    }

    /// `sample`.
    pub(crate) fn sample(&mut self, op: &Sample<O>) {
        let (vocab, cols) = (op.vocab, op.logits.cols());
        self.check("sample", vocab <= cols, format_args!("{vocab} tokens of {cols} logits"));
        self.uses(&op.logits, Rows::Logits);
    }

    /// `norm`, over the rows that it gives.
    pub(crate) fn norm(&mut self, op: &NormRows<O>) -> Rows {
        let (cols, out) = (op.x.cols(), op.out.cols());
        self.check("norm", cols == out, format_args!("{cols} columns into {out}"));
        self.check_norm("norm", &op.norm, cols);
        let rows = self.rows_of(&op.x);
        self.uses(&op.x, rows);
        self.writes(&op.out, rows);
        rows
    }

    /// `linear`, over the rows that it gives.
    pub(crate) fn linear(&mut self, op: &Linear<O>) -> Rows {
        let (n, k) = (op.weight.rows(), op.weight.cols());
        let cols = op.x.cols();
        self.check("linear", cols == k, format_args!("{cols} columns by a weight [{n}, {k}]"));
        let glu = matches!(op.epilogue, Epilogue::Glu(_));
        self.check("linear", !glu || n % 2 == 0, format_args!("{n} columns are no pairs"));
        let (want, out) = (if glu { n / 2 } else { n }, op.out.cols());
        self.check("linear", out == want, format_args!("{out} columns for {want} results"));
        if let Some(bias) = &op.bias {
            self.check("linear", bias.len() == n, format_args!("{} biases for {n}", bias.len()));
        }
        self.check("linear", !op.out.is(&op.x), format_args!("out is x"));
        let rows = self.rows_of(&op.x);
        self.uses(&op.x, rows);
        self.writes(&op.out, rows);
        rows
    }

    /// `qk_rope_store`.
    pub(crate) fn qk_rope_store(&mut self, op: &QkRopeStore<O>) {
        self.check_heads("qk_rope_store", op.heads, &op.qkv, &op.kv);
        self.uses_cache("qk_rope_store", op.group, op.layer, &op.kv);
        for norm in [&op.q_norm, &op.k_norm].into_iter().flatten() {
            self.check_norm("qk_rope_store", norm, op.heads.head_dim);
        }
        if let Some(rope) = &op.rope {
            let (dim, len) = (rope.rotary_dim, rope.keys.len());
            let is_whole = dim > 0 && dim % 2 == 0 && dim <= op.heads.head_dim && len % dim == 0;
            let fits = is_whole && rope.queries.len() == len;
            self.check("qk_rope_store", fits, format_args!("rope {dim} with a table of {len}"));
            self.bounds.positions = self.bounds.positions.min(len / dim.max(1));
        }
        self.uses(&op.qkv, Rows::Tokens);
    }

    /// `gather_rows`.
    pub(crate) fn gather_rows(&mut self, op: &GatherRows<O>) {
        let (cols, out) = (op.x.cols(), op.out.cols());
        self.check("gather_rows", cols == out, format_args!("{cols} columns into {out}"));
        self.check("gather_rows", !op.out.is(&op.x), format_args!("out is x"));
        self.uses(&op.x, Rows::Tokens);
        self.writes(&op.out, Rows::Logits);
    }

    /// `add_normed`.
    pub(crate) fn add_normed(&mut self, projected: &O::Tensor, norm: &Norm<O>, x: &O::Tensor) {
        let (cols, out) = (projected.cols(), x.cols());
        self.check("add_normed", cols == out, format_args!("{cols} columns to {out}"));
        self.check_norm("add_normed", norm, cols);
        self.uses(projected, Rows::Tokens);
        self.uses(x, Rows::Tokens);
    }

    /// Remembers the first op that does not fit. Also for what a device alone asks.
    pub(crate) fn check(&mut self, op: &'static str, fits: bool, numbers: std::fmt::Arguments<'_>) {
        if !fits && self.refused.is_none() {
            self.refused = Some(KernelError::Shape { op, reason: numbers.to_string() });
        }
    }

    /// Notes that an op uses `tensor` with `rows`.
    pub(crate) fn uses(&mut self, tensor: &O::Tensor, rows: Rows) {
        let bound = match rows {
            Rows::Tokens => &mut self.bounds.tokens,
            Rows::Logits => &mut self.bounds.logits_rows,
        };
        *bound = (*bound).min(tensor.rows());
    }

    fn rows_of(&self, tensor: &O::Tensor) -> Rows {
        let gathered = self.logits_rows.iter().any(|known| known.is(tensor));
        if gathered { Rows::Logits } else { Rows::Tokens }
    }

    /// `out` holds as many rows as `rows` says from here on.
    fn writes(&mut self, out: &O::Tensor, rows: Rows) {
        self.uses(out, rows);
        self.logits_rows.retain(|known| !known.is(out));
        if rows == Rows::Logits {
            self.logits_rows.push(out.clone());
        }
    }

    fn check_norm(&mut self, op: &'static str, norm: &Norm<O>, cols: usize) {
        let len = norm.weight.len();
        self.check(op, len == cols, format_args!("{len} norm weights for {cols} columns"));
    }

    fn check_heads(&mut self, op: &'static str, heads: Heads, qkv: &O::Tensor, kv: &O::Kv) {
        let Heads { num_q, num_kv, head_dim } = heads;
        let divides = num_kv > 0 && num_q.is_multiple_of(num_kv);
        self.check(op, divides, format_args!("{num_q} query heads over {num_kv} KV heads"));
        let want = (num_q + 2 * num_kv) * head_dim;
        self.check(op, qkv.cols() == want, format_args!("qkv {} for {want}", qkv.cols()));
        let spec = kv.spec();
        let fits = spec.num_kv_heads == num_kv && spec.head_dim == head_dim;
        self.check(op, fits, format_args!("{heads:?} in a cache of {spec:?}"));
    }

    /// Notes a layer's cache under its group.
    fn uses_cache(&mut self, op: &'static str, group: usize, layer: usize, kv: &O::Kv) {
        let spec = kv.spec();
        self.check(op, layer < spec.num_layers, format_args!("layer {layer} of {spec:?}"));
        let known = self.caches.iter().any(|(at, known)| *at == group && known.is(kv));
        if !known {
            self.caches.push((group, kv.clone()));
        }
    }
}

/// What of a mixture's arguments does not fit the others, if anything.
pub(crate) fn check_experts<O: Ops>(op: &Moe<O>) -> Result<(), String>
where
    O::Tensor: TensorShape,
    O::Vector: VectorShape,
    O::Weight: MatrixShape,
    O::Experts: ExpertsShape,
{
    let hidden = op.x.cols();
    let experts = op.gate_up.num_experts();
    let inner = op.down.cols();
    let fits = [
        ("norm", op.norm.weight.len() == hidden),
        ("normed", op.normed.cols() == hidden && !op.normed.is(&op.x)),
        ("router", op.router.rows() == experts && op.router.cols() == hidden),
        ("scores", op.scores.cols() == experts),
        ("chosen", (1..=experts).contains(&op.num_chosen)),
        ("gate_up", op.gate_up.cols() == hidden && op.gate_up.rows() == 2 * inner),
        ("inner", op.inner.cols() == inner),
        ("down", op.down.num_experts() == experts && op.down.rows() == hidden),
        ("outer", op.outer.cols() == hidden),
    ];
    match fits.into_iter().find(|(_, fits)| !fits) {
        None => Ok(()),
        Some((part, _)) => Err(format!(
            "{part} does not fit {experts} experts [{}, {hidden}], [{}, {inner}], {} chosen",
            op.gate_up.rows(),
            op.down.rows(),
            op.num_chosen
        )),
    }
}
