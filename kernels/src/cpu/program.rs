//! A recorded program: commands in order, and the memory that they change.
//!
//! Shapes are checked here, once, when an op is recorded; a wrong one is remembered and refused
//! when the executor starts, so that recording reads as plain calls.

use std::sync::Arc;

use crate::cpu::buffer::{Activation, Claim, Parameters};
use crate::cpu::command::{AttentionUnit, Command, Rows};
use crate::cpu::kv::KvCache;
use crate::cpu::moe::MoeOp;
use crate::cpu::norm::AddNormed;
use crate::cpu::sample::SampleOp;
use crate::cpu::weight::PackedWeight;
use crate::error::KernelError;
use crate::ops::{
    Attention, Embed, Epilogue, GatherRows, Heads, Linear, Moe, Norm, NormRows, Ops, QkRopeStore,
    Sample,
};

/// Records ops for the CPU.
pub struct CpuProgram {
    commands: Vec<Command>,
    claims: Vec<Arc<Claim>>,
    caches: Vec<(usize, KvCache)>,
    logits_rows: Vec<Activation>,
    bounds: Bounds,
    attention_unit: AttentionUnit,
    refused: Option<KernelError>,
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

/// A finished program, taken apart for the executor.
pub(crate) struct Recorded {
    /// What to run.
    pub(crate) commands: Vec<Command>,
    /// Every mutable buffer's claim, each once.
    pub(crate) claims: Vec<Arc<Claim>>,
    /// Each KV group's cache.
    pub(crate) caches: Vec<(usize, KvCache)>,
    /// What a batch may hold.
    pub(crate) bounds: Bounds,
}

impl CpuProgram {
    pub(crate) fn new(attention_unit: usize) -> Self {
        let max = usize::MAX;
        CpuProgram {
            commands: Vec::new(),
            claims: Vec::new(),
            caches: Vec::new(),
            logits_rows: Vec::new(),
            bounds: Bounds { tokens: max, logits_rows: max, vocab: max, positions: max },
            attention_unit: AttentionUnit(attention_unit),
            refused: None,
        }
    }

    /// The program, or the first op whose shapes did not fit.
    pub(crate) fn finish(self) -> Result<Recorded, KernelError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let CpuProgram { commands, claims, caches, bounds, .. } = self;
        Ok(Recorded { commands, claims, caches, bounds })
    }

    fn check(&mut self, op: &'static str, fits: bool, numbers: std::fmt::Arguments<'_>) {
        if !fits && self.refused.is_none() {
            self.refused = Some(KernelError::Shape { op, reason: numbers.to_string() });
        }
    }

    fn claim(&mut self, claim: &Arc<Claim>) {
        if !self.claims.iter().any(|known| Arc::ptr_eq(known, claim)) {
            self.claims.push(Arc::clone(claim));
        }
    }

    /// Notes that an op uses `tensor` with `rows`, and claims it.
    fn uses(&mut self, tensor: &Activation, rows: Rows) {
        self.claim(tensor.claim());
        let bound = match rows {
            Rows::Tokens => &mut self.bounds.tokens,
            Rows::Logits => &mut self.bounds.logits_rows,
        };
        *bound = (*bound).min(tensor.rows());
    }

    fn rows_of(&self, tensor: &Activation) -> Rows {
        let gathered = self.logits_rows.iter().any(|known| known.is(tensor));
        if gathered { Rows::Logits } else { Rows::Tokens }
    }

    /// `out` holds as many rows as `rows` says from here on.
    fn writes(&mut self, out: &Activation, rows: Rows) {
        self.uses(out, rows);
        self.logits_rows.retain(|known| !known.is(out));
        if rows == Rows::Logits {
            self.logits_rows.push(out.clone());
        }
    }

    fn check_norm(&mut self, op: &'static str, norm: &Norm<Self>, cols: usize) {
        let len = norm.weight.len();
        self.check(op, len == cols, format_args!("{len} norm weights for {cols} columns"));
    }

    fn check_heads(&mut self, op: &'static str, heads: Heads, qkv: &Activation, kv: &KvCache) {
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
    fn uses_cache(&mut self, op: &'static str, group: usize, layer: usize, kv: &KvCache) {
        self.claim(kv.claim());
        let spec = kv.spec();
        self.check(op, layer < spec.num_layers, format_args!("layer {layer} of {spec:?}"));
        let known = self.caches.iter().any(|(at, known)| *at == group && known.is_same(kv));
        if !known {
            self.caches.push((group, kv.clone()));
        }
    }
}

impl Ops for CpuProgram {
    type Tensor = Activation;
    type Vector = Parameters;
    type Weight = PackedWeight;
    type Experts = PackedWeight;
    type Kv = KvCache;

    fn embed(&mut self, op: Embed<Self>) {
        let (width, cols) = (op.table.cols(), op.x.cols());
        self.check("embed", width == cols, format_args!("a table of {width} into {cols} columns"));
        self.bounds.vocab = self.bounds.vocab.min(op.table.rows());
        self.writes(&op.x, Rows::Tokens);
        self.commands.push(Command::Embed(op));
    }

    fn attention(&mut self, op: Attention<Self>) {
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
        self.commands.push(Command::Attention(op, self.attention_unit));
    }

    fn moe(&mut self, op: Moe<Self>) {
        if let Err(reason) = MoeOp::check(&op) {
            self.check("moe", false, format_args!("{reason}"));
        }
        let rows = self.bounds.tokens.min(op.x.rows());
        for tensor in [&op.x, &op.normed, &op.scores] {
            self.writes(tensor, Rows::Tokens);
        }
        for tensor in [&op.inner, &op.outer] {
            self.claim(tensor.claim());
            let most = tensor.rows() / op.num_chosen.max(1);
            self.check("moe", most >= rows, format_args!("scratch for {most} of {rows} rows"));
            self.bounds.tokens = self.bounds.tokens.min(most);
        }
        self.commands.push(Command::Moe(MoeOp::new(op)));
    }

    fn sample(&mut self, op: Sample<Self>) {
        let (vocab, cols) = (op.vocab, op.logits.cols());
        self.check("sample", vocab <= cols, format_args!("{vocab} tokens of {cols} logits"));
        self.uses(&op.logits, Rows::Logits);
        self.commands.push(Command::Sample(SampleOp::new(op)));
    }

    fn advance(&mut self) {
        self.commands.push(Command::Advance);
    }

    fn norm(&mut self, op: NormRows<Self>) {
        let (cols, out) = (op.x.cols(), op.out.cols());
        self.check("norm", cols == out, format_args!("{cols} columns into {out}"));
        self.check_norm("norm", &op.norm, cols);
        let rows = self.rows_of(&op.x);
        self.uses(&op.x, rows);
        self.writes(&op.out, rows);
        self.commands.push(Command::Norm(op, rows));
    }

    fn linear(&mut self, op: Linear<Self>) {
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
        self.commands.push(Command::Linear(op, rows));
    }

    fn qk_rope_store(&mut self, op: QkRopeStore<Self>) {
        self.check_heads("qk_rope_store", op.heads, &op.qkv, &op.kv);
        self.uses_cache("qk_rope_store", op.group, op.layer, &op.kv);
        for norm in [&op.q_norm, &op.k_norm].into_iter().flatten() {
            self.check_norm("qk_rope_store", norm, op.heads.head_dim);
        }
        if let Some(rope) = &op.rope {
            let (dim, len) = (rope.rotary_dim, rope.table.len());
            let fits = dim > 0 && dim % 2 == 0 && dim <= op.heads.head_dim && len % dim == 0;
            self.check("qk_rope_store", fits, format_args!("rope {dim} with a table of {len}"));
            self.bounds.positions = self.bounds.positions.min(len / dim.max(1));
        }
        self.uses(&op.qkv, Rows::Tokens);
        self.commands.push(Command::QkRopeStore(op));
    }

    fn gather_rows(&mut self, op: GatherRows<Self>) {
        let (cols, out) = (op.x.cols(), op.out.cols());
        self.check("gather_rows", cols == out, format_args!("{cols} columns into {out}"));
        self.check("gather_rows", !op.out.is(&op.x), format_args!("out is x"));
        self.uses(&op.x, Rows::Tokens);
        self.writes(&op.out, Rows::Logits);
        self.commands.push(Command::GatherRows(op));
    }

    fn add_normed(&mut self, projected: Activation, norm: Norm<Self>, x: Activation) {
        let (cols, out) = (projected.cols(), x.cols());
        self.check("add_normed", cols == out, format_args!("{cols} columns to {out}"));
        self.check_norm("add_normed", &norm, cols);
        self.uses(&projected, Rows::Tokens);
        self.uses(&x, Rows::Tokens);
        self.commands.push(Command::AddNormed(AddNormed { projected, norm, x }));
    }
}

#[cfg(test)]
impl CpuProgram {
    /// Uses `tensor` as an op would.
    pub(crate) fn sneak(&mut self, tensor: &Activation) {
        self.uses(tensor, Rows::Logits);
    }

    /// Records a command that panics in one worker.
    pub(crate) fn panic_in_worker(&mut self, worker: usize) {
        self.commands.push(Command::Panic(worker));
    }
}
