//! The sample op: one token a logits row, and log-probabilities.
//!
//! Steps of a row that samples: penalties, bias, allowed and suppressed tokens (`adjust`), then
//! temperature, min-p, top-k, top-p (`select`), then one Philox number and an inverse CDF (`draw`);
//! `describe` gives log-probabilities of the raw logits. Rows go to workers whole, so that their
//! bits do not depend on threads. Nothing is allocated in a step.

mod adjust;
mod describe;
mod draw;
mod passes;
mod philox;
mod select;
mod slot;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use self::describe::Describe;
use self::draw::{Draw, Scratch};
use self::slot::Slot;
use crate::batch::Batch;
use crate::cpu::cells::Cells;
use crate::cpu::command::{LeaderOutput, ScratchPlan, WorkerCtx};
use crate::cpu::isa::Isa;
use crate::cpu::program::CpuProgram;
use crate::cpu::team::Team;
use crate::device::Limits;
use crate::ops::Sample;
use crate::sampling::{LogitsRow, Purpose, SampleOutput, SampledRow, SamplerParams};

/// A recorded sample op and all that it keeps between steps.
pub(crate) struct SampleOp {
    op: Sample<CpuProgram>,
    /// Planned once the limits are known.
    state: Option<State>,
}

/// Memory for steps within limits.
struct State {
    max_top: usize,
    slots: Cells<Slot>,
    scratch: Cells<Scratch>,
    rows: Cells<RowResult>,
}

/// What a row gave, until the leader collects it.
struct RowResult {
    row: SampledRow,
    top: Vec<(u32, f32)>,
}

impl State {
    fn new(vocab: usize, limits: &Limits, workers: usize) -> State {
        let max_top = limits.max_top.min(vocab);
        let params: Arc<SamplerParams> = Arc::default();
        let slot = || Slot::new(limits.max_model_len, Arc::clone(&params));
        let row = || RowResult { row: SampledRow::default(), top: Vec::with_capacity(max_top) };
        State {
            max_top,
            slots: Cells::new(limits.max_seqs, slot),
            scratch: Cells::new(workers, || Scratch::new(vocab)),
            rows: Cells::new(limits.max_logits_rows, row),
        }
    }

    /// Bytes of such a state.
    fn bytes(vocab: usize, limits: &Limits, workers: usize) -> usize {
        let row = size_of::<RowResult>() + limits.max_top.min(vocab) * size_of::<(u32, f32)>();
        limits.max_seqs * Slot::bytes(limits.max_model_len)
            + workers * Scratch::bytes(vocab)
            + limits.max_logits_rows * row
    }
}

impl SampleOp {
    /// Records `op`.
    pub(crate) fn new(op: Sample<CpuProgram>) -> SampleOp {
        SampleOp { op, state: None }
    }

    /// Allocates for steps within `limits` on `workers` threads.
    pub(crate) fn plan(&mut self, plan: &mut ScratchPlan, limits: &Limits, workers: usize) {
        plan.keeps(State::bytes(self.op.vocab, limits, workers));
        self.state = Some(State::new(self.op.vocab, limits, workers));
    }

    /// Takes over new slots, samples this worker's rows; the leader then writes the output.
    pub(crate) fn run(&self, ctx: &WorkerCtx<'_>, batch: &Batch, output: LeaderOutput) {
        let Some(state) = &self.state else { return };
        let team = &ctx.team;
        if !batch.slot_inits.is_empty() {
            for init in &batch.slot_inits[team.share(batch.slot_inits.len())] {
                // SAFETY: a step has one init a slot, and shares do not overlap.
                unsafe { state.slots.cell(init.slot as usize) }.init(init);
            }
            team.wait();
        }
        let mut chain = Chain::default();
        for index in whole_chains(&batch.logits, team) {
            // SAFETY: no worker writes logits in this command.
            let logits = unsafe { &self.op.logits.row(index)[..self.op.vocab] };
            state.sample_row(ctx, batch, index, logits, &mut chain);
        }
        team.wait();
        if team.is_leader() {
            // SAFETY: the leader, which holds no other reference to the output.
            state.collect(batch, unsafe { output.leader() });
        }
    }
}

impl State {
    /// Gathers all rows in order. The leader calls it, behind a barrier after the last row.
    fn collect(&self, batch: &Batch, output: &mut SampleOutput) {
        output.rows.clear();
        output.top.clear();
        // The largest step's room at once: later steps never allocate.
        output.rows.reserve(self.rows.len());
        output.top.reserve(self.rows.len() * self.max_top);
        for index in 0..batch.logits.len() {
            // SAFETY: behind the barrier nobody else looks at results.
            let result = unsafe { self.rows.cell(index) };
            let top_start = output.top.len() as u32;
            output.top.extend_from_slice(&result.top);
            output.rows.push(SampledRow { top_start, ..result.row });
        }
    }

    fn sample_row(
        &self,
        ctx: &WorkerCtx<'_>,
        batch: &Batch,
        index: usize,
        logits: &[f32],
        chain: &mut Chain,
    ) {
        let row = &batch.logits[index];
        // SAFETY: the row is this worker's.
        let result = unsafe { self.rows.cell(index) };
        result.top.clear();
        let output_position = match row.purpose {
            Purpose::PromptLogprob { target, num_top } => {
                self.describe(ctx.isa, logits, (target, num_top), result);
                return;
            }
            Purpose::Sample { output_position } | Purpose::Verify { output_position, .. } => {
                output_position
            }
        };
        // SAFETY: all rows that sample for this slot are this worker's, as is its scratch.
        let (slot, scratch) = unsafe {
            let slot = self.slots.cell(batch.seq_slot[row.seq as usize] as usize);
            (slot, self.scratch.cell(ctx.team.worker))
        };
        let token = ctx.isa.dispatch(Draw { logits, slot: &*slot, output_position, scratch });
        if chain.is_accepted(row) {
            slot.count(token);
        }
        chain.extend(row, token);
        match slot.params.num_logprobs {
            Some(num_top) => self.describe(ctx.isa, logits, (token, num_top), result),
            None => result.row = SampledRow { token, logprob: f32::NAN, ..SampledRow::default() },
        }
    }

    fn describe(
        &self,
        isa: Isa,
        logits: &[f32],
        (token, num_top): (u32, u32),
        result: &mut RowResult,
    ) {
        let num_top = (num_top as usize).min(self.max_top).min(logits.len());
        result.top.resize(num_top, (0, 0.0));
        let describe = Describe { logits, token, top: &mut result.top };
        result.row = isa.dispatch(describe);
    }
}

/// Follows the drafted tokens of one sequence: a token behind a refused draft is no part of the
/// sequence, so it is sampled (its row exists) but not counted.
#[derive(Default)]
struct Chain {
    seq: Option<u32>,
    is_refused: bool,
}

impl Chain {
    fn is_accepted(&self, row: &LogitsRow) -> bool {
        self.seq != Some(row.seq) || !self.is_refused
    }

    fn extend(&mut self, row: &LogitsRow, token: u32) {
        if self.seq != Some(row.seq) {
            *self = Chain { seq: Some(row.seq), is_refused: false };
        }
        if let Purpose::Verify { draft, .. } = row.purpose {
            self.is_refused |= draft != token;
        }
    }
}

/// This worker's share of the rows, moved so that sampled rows of one sequence stay together:
/// each counts its token before the next is sampled.
fn whole_chains(rows: &[LogitsRow], team: &Team<'_>) -> Range<usize> {
    let samples = |row: &LogitsRow| !matches!(row.purpose, Purpose::PromptLogprob { .. });
    let splits_chain = |at: usize| {
        at > 0
            && at < rows.len()
            && rows[at - 1].seq == rows[at].seq
            && samples(&rows[at - 1])
            && samples(&rows[at])
    };
    let next_cut = |mut at: usize| {
        while splits_chain(at) {
            at += 1;
        }
        at
    };
    let share = team.share(rows.len());
    next_cut(share.start)..next_cut(share.end)
}
