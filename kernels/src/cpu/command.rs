//! One recorded op, how much scratch it needs, and how a worker runs it.
//!
//! A worker walks a program's commands with a barrier after each, so a command sees all that the
//! commands before it wrote. Within a command, workers write disjoint memory.

use std::sync::atomic::AtomicU32;

use crate::batch::Batch;
use crate::cpu::buffer::AlignedBuffer;
use crate::cpu::isa::Isa;
use crate::cpu::program::CpuProgram;
use crate::cpu::team::Team;
use crate::cpu::{advance, attention, embed, gather, linear, moe, norm, rope, sample};
use crate::device::Limits;
use crate::error::KernelError;
use crate::ops;
use crate::sampling::SampleOutput;
use crate::shapes::Rows;

/// A recorded primitive.
pub(crate) enum Command {
    /// Token embeddings.
    Embed(ops::Embed<CpuProgram>),
    /// A norm of each row.
    Norm(ops::NormRows<CpuProgram>, Rows),
    /// A matrix product.
    Linear(ops::Linear<CpuProgram>, Rows),
    /// QK norm, rope, KV write.
    QkRopeStore(ops::QkRopeStore<CpuProgram>),
    /// Paged attention.
    Attention(ops::Attention<CpuProgram>, AttentionUnit),
    /// Rows that need logits.
    GatherRows(ops::GatherRows<CpuProgram>),
    /// Adds a normed projection.
    AddNormed(norm::AddNormed),
    /// Mixture of experts.
    Moe(moe::MoeOp),
    /// Sampling and log-probabilities.
    Sample(sample::SampleOp),
    /// Remembers each slot's token.
    Advance,
    /// Panics in one worker.
    #[cfg(test)]
    Panic(usize),
}

/// Keys that attention reduces at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionUnit(pub(crate) usize);

/// Scratch bytes of a program: commands run one after another, so it is the largest need of one.
/// What a command keeps between steps comes on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScratchPlan {
    shared: usize,
    own: usize,
    kept: usize,
}

impl ScratchPlan {
    /// A command needs `bytes` that all workers see ([`WorkerCtx::shared`]).
    pub(crate) fn need_shared(&mut self, bytes: usize) {
        self.shared = self.shared.max(bytes);
    }

    /// A command needs `bytes` for each worker ([`WorkerCtx::own`]).
    pub(crate) fn need_own(&mut self, bytes: usize) {
        self.own = self.own.max(bytes);
    }

    /// A command allocates `bytes` itself.
    pub(crate) fn keeps(&mut self, bytes: usize) {
        self.kept += bytes;
    }

    /// All bytes for a team of so many workers.
    pub(crate) fn bytes(&self, workers: usize) -> usize {
        self.shared + self.own * workers + self.kept
    }

    /// Allocates for a team.
    pub(crate) fn allocate(self, workers: usize) -> Result<Scratch, KernelError> {
        let own = (0..workers).map(|_| AlignedBuffer::zeroed(self.own, "a worker's scratch"));
        Ok(Scratch {
            shared: AlignedBuffer::zeroed(self.shared, "the team's scratch")?,
            own: own.collect::<Result<_, _>>()?,
        })
    }
}

/// Scratch of a team, allocated once. Contents do not survive a command.
#[derive(Debug)]
pub(crate) struct Scratch {
    shared: AlignedBuffer,
    own: Vec<AlignedBuffer>,
}

/// What a worker has in hand while it runs a command.
#[derive(Clone, Copy)]
pub(crate) struct WorkerCtx<'a> {
    /// Its place in the team, and the barrier for commands of several phases.
    pub(crate) team: Team<'a>,
    /// The kernels' instruction set.
    pub(crate) isa: Isa,
    /// `[max_seqs]` last sampled token of each slot.
    pub(crate) last_tokens: &'a [AtomicU32],
    scratch: &'a Scratch,
}

impl<'a> WorkerCtx<'a> {
    /// A worker's view of the executor's memory.
    pub(crate) fn new(
        team: Team<'a>,
        isa: Isa,
        last_tokens: &'a [AtomicU32],
        scratch: &'a Scratch,
    ) -> Self {
        WorkerCtx { team, isa, last_tokens, scratch }
    }

    /// This worker's own scratch: as many bytes as the largest [`ScratchPlan::need_own`], aligned
    /// to a cache line. Nobody else touches it.
    pub(crate) fn own(&self) -> *mut u8 {
        self.scratch.own[self.team.worker].as_ptr()
    }

    /// The team's scratch: as many bytes as the largest [`ScratchPlan::need_shared`], aligned to a
    /// cache line. Workers write disjoint parts, and read others' after a barrier.
    pub(crate) fn shared(&self) -> *mut u8 {
        self.scratch.shared.as_ptr()
    }
}

/// The step's output, which only the leader touches.
#[derive(Clone, Copy)]
pub(crate) struct LeaderOutput(*mut SampleOutput);

impl LeaderOutput {
    /// The output of the step that the team is running.
    pub(crate) fn new(output: *mut SampleOutput) -> Self {
        LeaderOutput(output)
    }

    /// The output.
    ///
    /// # Safety
    /// The caller is its team's leader, holds no other reference to it, and the step is running.
    #[expect(clippy::mut_from_ref, reason = "the leader's alone; the contract is above")]
    pub(crate) unsafe fn leader(&self) -> &mut SampleOutput {
        // SAFETY: the executor keeps the step in place while it runs.
        unsafe { &mut *self.0 }
    }
}

impl Command {
    /// Plans what the command needs for steps within `limits`.
    pub(crate) fn plan(
        &mut self,
        plan: &mut ScratchPlan,
        limits: &Limits,
        workers: usize,
    ) -> Result<(), KernelError> {
        match self {
            Command::Linear(op, rows) => linear::plan(op, rows.max(limits), plan),
            Command::Attention(op, unit) => attention::plan(op, *unit, plan, limits, workers),
            Command::Moe(op) => op.plan(plan, limits),
            Command::Sample(op) => op.plan(plan, limits, workers),
            Command::Embed(_)
            | Command::Norm(..)
            | Command::QkRopeStore(_)
            | Command::GatherRows(_)
            | Command::AddNormed(_)
            | Command::Advance => {}
            #[cfg(test)]
            Command::Panic(_) => {}
        }
        Ok(())
    }

    /// Runs this worker's part. The team meets at a barrier afterwards.
    pub(crate) fn run(&self, ctx: &WorkerCtx<'_>, batch: &Batch, output: LeaderOutput) {
        match self {
            Command::Embed(op) => embed::run(op, ctx, batch),
            Command::Norm(op, rows) => norm::run(op, rows.of(batch), ctx),
            Command::Linear(op, rows) => linear::run(op, rows.of(batch), ctx),
            Command::QkRopeStore(op) => rope::run(op, ctx, batch),
            Command::Attention(op, unit) => attention::run(op, *unit, ctx, batch),
            Command::GatherRows(op) => gather::run(op, ctx, batch),
            Command::AddNormed(op) => norm::run_add(op, batch.num_tokens(), ctx),
            Command::Moe(op) => op.run(ctx, batch),
            Command::Sample(op) => op.run(ctx, batch, output),
            Command::Advance => advance::run(ctx, batch, output),
            #[cfg(test)]
            Command::Panic(worker) => assert_ne!(*worker, ctx.team.worker, "planted"),
        }
    }
}
