//! `moe`: routes each row to some experts and adds their weighted outputs.
//!
//! Phases with a barrier after each: norm; router scores; the choice of experts, a row to a worker;
//! (row, expert) pairs sorted by expert, by the leader; gate and up of each expert over its rows;
//! down; the sum, a row to a worker, in ascending order of expert. Nothing is added atomically and
//! no order depends on threads.

mod group;
mod route;

#[cfg(test)]
mod tests;

use crate::batch::Batch;
use crate::cpu::buffer::Activation;
use crate::cpu::command::{ScratchPlan, WorkerCtx};
use crate::cpu::linear::{OutRows, PreparedRows, Product, prepared_bytes, prepares};
use crate::cpu::norm;
use crate::cpu::program::CpuProgram;
use crate::cpu::weight::PackedWeight;
use crate::device::Limits;
use crate::ops::{Epilogue, Moe};
use crate::weight_format::WeightFormat;

use group::{Groups, MoeScratch};

/// A recorded mixture of experts.
pub(crate) struct MoeOp {
    op: Moe<CpuProgram>,
    /// Pairs that the scratch was planned for.
    pairs_max: usize,
}

impl MoeOp {
    /// Wraps the op; [`crate::shapes`] said that its shapes fit.
    pub(crate) fn new(op: Moe<CpuProgram>) -> Self {
        MoeOp { op, pairs_max: 0 }
    }

    /// Plans scratch: prepared rows, choices, the sorted pairs.
    pub(crate) fn plan(&mut self, plan: &mut ScratchPlan, limits: &Limits) {
        self.pairs_max = limits.max_tokens * self.op.num_chosen;
        plan.need_shared(self.scratch_layout(limits.max_tokens, std::ptr::null_mut()).bytes());
    }

    fn scratch_layout(&self, rows_max: usize, start: *mut u8) -> MoeScratch {
        let op = &self.op;
        let pairs = rows_max * op.num_chosen;
        let prepared = [
            prepared_bytes(op.router.format(), rows_max, op.x.cols()),
            prepared_bytes(op.gate_up.format(), rows_max, op.x.cols()),
            prepared_bytes(op.down.format(), pairs, op.inner.cols()),
        ];
        let prepared = prepared.into_iter().fold(0, usize::max);
        MoeScratch::lay_out(start, prepared, pairs, op.gate_up.num_experts())
    }

    /// Runs this worker's part of every phase.
    pub(crate) fn run(&self, ctx: &WorkerCtx<'_>, batch: &Batch) {
        let op = &self.op;
        let rows = batch.num_tokens();
        if rows == 0 {
            return;
        }
        let rows_max = self.pairs_max / op.num_chosen;
        let scratch = self.scratch_layout(rows_max, ctx.shared());
        norm::run_rows(&op.x, &op.norm, &op.normed, rows, ctx);
        ctx.team.wait();
        self.score(rows, &scratch, ctx);
        ctx.team.wait();
        for row in ctx.team.share(rows) {
            // SAFETY: this worker's row of scores and of choices; pairs were planned.
            unsafe {
                let scores = op.scores.row_mut(row);
                let (experts, weights) = scratch.choices(row, op.num_chosen);
                ctx.isa.dispatch(route::Route { op, scores, experts, weights });
            }
        }
        ctx.team.wait();
        if ctx.team.is_leader() {
            // SAFETY: choices of all rows are written, and nobody else runs until the barrier.
            unsafe { scratch.sort(rows * op.num_chosen, op.num_chosen) };
        }
        // The leader sorts while all prepare rows for the experts.
        let prepared = prepare(&scratch, &op.normed, op.gate_up.format(), rows, ctx);
        ctx.team.wait();
        // SAFETY: sorted before the barrier, only read from here on.
        let groups = unsafe { scratch.groups(rows * op.num_chosen) };
        let gate_up = Grouped {
            weight: &op.gate_up,
            x: prepared,
            tokens: Some(groups.tokens),
            out: &op.inner,
            epilogue: Epilogue::Glu(op.activation),
        };
        gate_up.run(&groups, ctx);
        ctx.team.wait();
        let prepared = prepare(&scratch, &op.inner, op.down.format(), rows * op.num_chosen, ctx);
        ctx.team.wait();
        let down = Grouped {
            weight: &op.down,
            x: prepared,
            tokens: None,
            out: &op.outer,
            epilogue: Epilogue::Store,
        };
        down.run(&groups, ctx);
        ctx.team.wait();
        self.combine(rows, &scratch, ctx);
    }

    /// Router scores of all rows, cut over the experts.
    fn score(&self, rows: usize, scratch: &MoeScratch, ctx: &WorkerCtx<'_>) {
        let op = &self.op;
        let panels = op.router.panels();
        let x = prepare(scratch, &op.normed, panels.shape.format, rows, ctx);
        if prepares(panels.shape.format) {
            ctx.team.wait();
        }
        let product = Product {
            panels,
            range: ctx.team.share(panels.shape.panels()),
            x,
            x_index: None,
            out: OutRows::of(&op.scores),
            rows,
            bias: None,
            epilogue: Epilogue::Store,
        };
        product.run(ctx.isa);
    }

    /// `x[t] += Σ w · outer`, experts in ascending order.
    fn combine(&self, rows: usize, scratch: &MoeScratch, ctx: &WorkerCtx<'_>) {
        let op = &self.op;
        for row in ctx.team.share(rows) {
            // SAFETY: this worker's row; choices and outputs are complete and only read.
            unsafe {
                let x = op.x.row_mut(row);
                let (_, weights) = scratch.choices(row, op.num_chosen);
                let places = scratch.places(row, op.num_chosen);
                for (&place, &weight) in places.iter().zip(weights.iter()) {
                    for (x, y) in x.iter_mut().zip(op.outer.row(place as usize)) {
                        *x += weight * y;
                    }
                }
            }
        }
    }
}

/// Prepares this worker's share of `rows` rows in scratch, if the format wants it. A barrier must
/// follow before they are read.
fn prepare(
    scratch: &MoeScratch,
    x: &Activation,
    format: WeightFormat,
    rows: usize,
    ctx: &WorkerCtx<'_>,
) -> PreparedRows {
    if !prepares(format) {
        return PreparedRows::in_place(x);
    }
    let prepared = PreparedRows::in_scratch(scratch.prepared(), format, x.cols());
    // SAFETY: planned for all rows; each row is one worker's.
    unsafe { prepared.prepare(ctx.isa, format, x, ctx.team.share(rows)) };
    prepared
}

/// A linear of which each expert does its own rows.
struct Grouped<'a> {
    weight: &'a PackedWeight,
    x: PreparedRows,
    /// Row of `x` of each sorted pair; `None` where pairs are the rows.
    tokens: Option<&'a [u32]>,
    /// A row for each sorted pair.
    out: &'a Activation,
    epilogue: Epilogue,
}

impl Grouped<'_> {
    /// This worker's part: panels of all experts in a line, weighed by their rows.
    fn run(&self, groups: &Groups<'_>, ctx: &WorkerCtx<'_>) {
        let num_panels = self.weight.panels().shape.panels();
        let share = ctx.team.share(groups.num_pairs() * num_panels);
        for expert in 0..self.weight.num_experts() {
            let pairs = groups.pairs(expert);
            // Panel p of this expert starts at unit start + p · rows.
            let (start, rows) = (pairs.start * num_panels, pairs.len());
            if rows == 0 || start >= share.end || start + rows * num_panels <= share.start {
                continue;
            }
            let panel_at = |unit: usize| unit.saturating_sub(start).div_ceil(rows).min(num_panels);
            let x = if self.tokens.is_some() { self.x } else { self.x.starting_at(pairs.start) };
            let product = Product {
                panels: self.weight.expert(expert),
                range: panel_at(share.start)..panel_at(share.end),
                x,
                x_index: self.tokens.map(|tokens| &tokens[pairs.clone()]),
                out: OutRows::of(self.out).starting_at(pairs.start),
                rows,
                bias: None,
                epilogue: self.epilogue,
            };
            product.run(ctx.isa);
        }
    }
}
