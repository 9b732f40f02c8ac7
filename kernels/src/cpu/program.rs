//! A recorded program: commands in order, and the memory that they change.
//!
//! Shapes are checked by [`crate::shapes`] when an op is recorded. Here each mutable buffer is
//! claimed, so that two executors never write one.

use std::sync::Arc;

use crate::cpu::buffer::{Activation, Claim, Parameters};
use crate::cpu::command::{AttentionUnit, Command};
use crate::cpu::kv::KvCache;
use crate::cpu::moe::MoeOp;
use crate::cpu::norm::AddNormed;
use crate::cpu::sample::SampleOp;
use crate::cpu::weight::PackedWeight;
use crate::device::KvSpec;
use crate::error::KernelError;
use crate::ops::{
    Attention, Embed, GatherRows, Linear, Moe, Norm, NormRows, Ops, QkRopeStore, Sample,
};
#[cfg(test)]
use crate::shapes::Rows;
use crate::shapes::{
    Bounds, CacheShape, ExpertsShape, GroupShape, MatrixShape, Shapes, TensorShape, VectorShape,
};

/// Records ops for the CPU.
pub struct CpuProgram {
    commands: Vec<Command>,
    claims: Vec<Arc<Claim>>,
    shapes: Shapes<CpuProgram>,
    attention_unit: AttentionUnit,
}

/// A finished program, taken apart for the executor.
pub(crate) struct Recorded {
    /// What to run.
    pub(crate) commands: Vec<Command>,
    /// Every mutable buffer's claim, each once.
    pub(crate) claims: Vec<Arc<Claim>>,
    /// What a batch may hold.
    pub(crate) bounds: Bounds,
    /// The KV groups that it addresses.
    pub(crate) groups: Vec<GroupShape>,
    /// Their caches.
    pub(crate) caches: Vec<(usize, KvCache)>,
}

impl CpuProgram {
    pub(crate) fn new(attention_unit: usize) -> Self {
        CpuProgram {
            commands: Vec::new(),
            claims: Vec::new(),
            shapes: Shapes::new(),
            attention_unit: AttentionUnit(attention_unit),
        }
    }

    /// The program, or the first op whose shapes did not fit.
    pub(crate) fn finish(self) -> Result<Recorded, KernelError> {
        let caches = self.shapes.caches().to_vec();
        let (bounds, groups) = self.shapes.finish()?;
        Ok(Recorded { commands: self.commands, claims: self.claims, bounds, groups, caches })
    }

    fn claim(&mut self, claim: &Arc<Claim>) {
        if !self.claims.iter().any(|known| Arc::ptr_eq(known, claim)) {
            self.claims.push(Arc::clone(claim));
        }
    }

    fn claim_all<const N: usize>(&mut self, tensors: [&Activation; N]) {
        tensors.into_iter().for_each(|tensor| self.claim(tensor.claim()));
    }
}

impl TensorShape for Activation {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn cols(&self) -> usize {
        self.cols()
    }

    fn is(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl VectorShape for Parameters {
    fn len(&self) -> usize {
        self.len()
    }
}

impl MatrixShape for PackedWeight {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn cols(&self) -> usize {
        self.cols()
    }
}

impl ExpertsShape for PackedWeight {
    fn num_experts(&self) -> usize {
        self.num_experts()
    }
}

impl CacheShape for KvCache {
    fn spec(&self) -> KvSpec {
        self.spec()
    }

    fn block_size(&self) -> usize {
        self.block_size()
    }

    fn is(&self, other: &Self) -> bool {
        self.is_same(other)
    }
}

impl Ops for CpuProgram {
    type Tensor = Activation;
    type Vector = Parameters;
    type Weight = PackedWeight;
    type Experts = PackedWeight;
    type Kv = KvCache;

    fn embed(&mut self, op: Embed<Self>) {
        self.shapes.embed(&op);
        self.claim_all([&op.x]);
        self.commands.push(Command::Embed(op));
    }

    fn attention(&mut self, op: Attention<Self>) {
        self.shapes.attention(&op);
        self.claim_all([&op.qkv, &op.out]);
        self.claim(op.kv.claim());
        self.commands.push(Command::Attention(op, self.attention_unit));
    }

    fn moe(&mut self, op: Moe<Self>) {
        self.shapes.moe(&op);
        self.claim_all([&op.x, &op.normed, &op.scores, &op.inner, &op.outer]);
        self.commands.push(Command::Moe(MoeOp::new(op)));
    }

    fn sample(&mut self, op: Sample<Self>) {
        self.shapes.sample(&op);
        self.claim_all([&op.logits]);
        self.commands.push(Command::Sample(SampleOp::new(op)));
    }

    fn advance(&mut self) {
        self.commands.push(Command::Advance);
    }

    fn norm(&mut self, op: NormRows<Self>) {
        let rows = self.shapes.norm(&op);
        self.claim_all([&op.x, &op.out]);
        self.commands.push(Command::Norm(op, rows));
    }

    fn linear(&mut self, op: Linear<Self>) {
        let rows = self.shapes.linear(&op);
        self.claim_all([&op.x, &op.out]);
        self.commands.push(Command::Linear(op, rows));
    }

    fn qk_rope_store(&mut self, op: QkRopeStore<Self>) {
        self.shapes.qk_rope_store(&op);
        self.claim_all([&op.qkv]);
        self.claim(op.kv.claim());
        self.commands.push(Command::QkRopeStore(op));
    }

    fn gather_rows(&mut self, op: GatherRows<Self>) {
        self.shapes.gather_rows(&op);
        self.claim_all([&op.x, &op.out]);
        self.commands.push(Command::GatherRows(op));
    }

    fn add_normed(&mut self, projected: Activation, norm: Norm<Self>, x: Activation) {
        self.shapes.add_normed(&projected, &norm, &x);
        self.claim_all([&projected, &x]);
        self.commands.push(Command::AddNormed(AddNormed { projected, norm, x }));
    }
}

#[cfg(test)]
impl CpuProgram {
    /// Uses `tensor` as an op would.
    pub(crate) fn sneak(&mut self, tensor: &Activation) {
        self.claim_all([tensor]);
        self.shapes.uses(tensor, Rows::Logits);
    }

    /// Records a command that panics in one worker.
    pub(crate) fn panic_in_worker(&mut self, worker: usize) {
        self.commands.push(Command::Panic(worker));
    }
}
