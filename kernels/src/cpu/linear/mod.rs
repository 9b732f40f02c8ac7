//! `linear`: packed weight times rows, with bias and epilogue.
//!
//! Workers take contiguous ranges of panels, so a worker streams its part of the weight once.
//! Every result is one chain of multiply-adds over k, front to back, whatever the number of rows,
//! the tile, the worker or the row block: the bits of a row never depend on its company.

mod blocks;
mod epilogue;
mod format;
mod product;
mod rows;
mod tile;

#[cfg(test)]
mod tests;

use crate::cpu::buffer::Activation;
use crate::cpu::command::{ScratchPlan, WorkerCtx};
use crate::cpu::program::CpuProgram;
use crate::ops::Linear;
use crate::weight_format::WeightFormat;

pub(crate) use product::{OutRows, Product};
pub(crate) use rows::{PreparedRows, prepared_bytes, prepares};

/// Up to this many words, each worker prepares all rows for itself: cheaper than a barrier.
const OWN_WORDS: usize = 16 << 10;

/// Plans the rows' prepared copy.
pub(crate) fn plan(op: &Linear<CpuProgram>, rows_max: usize, plan: &mut ScratchPlan) {
    let shape = op.weight.panels().shape;
    if prepares(shape.format) {
        plan.need_shared(prepared_bytes(shape.format, rows_max, shape.k));
        plan.need_own(OWN_WORDS * 4);
    }
}

/// Runs this worker's panels over `rows` rows.
pub(crate) fn run(op: &Linear<CpuProgram>, rows: usize, ctx: &WorkerCtx<'_>) {
    if rows == 0 {
        return;
    }
    let panels = op.weight.panels();
    let x = prepare(&op.x, rows, panels.shape.format, ctx);
    let product = Product {
        panels,
        range: ctx.team.share(panels.shape.panels()),
        x,
        x_index: None,
        out: OutRows::of(&op.out),
        rows,
        bias: op.bias.as_ref().map(|bias| bias.padded()),
        epilogue: op.epilogue,
    };
    product.run(ctx.isa);
}

/// The rows as the weight's format wants them: in place, or prepared in scratch by the team.
fn prepare(x: &Activation, rows: usize, format: WeightFormat, ctx: &WorkerCtx<'_>) -> PreparedRows {
    if !prepares(format) {
        return PreparedRows::in_place(x);
    }
    let small = prepared_bytes(format, rows, x.cols()) <= OWN_WORDS * 4;
    let scratch = if small { ctx.own() } else { ctx.shared() };
    let prepared = PreparedRows::in_scratch(scratch, format, x.cols());
    let share = if small { 0..rows } else { ctx.team.share(rows) };
    // SAFETY: planned for all rows; own scratch is this worker's, shared rows are its share.
    unsafe { prepared.prepare(ctx.isa, format, x, share) };
    if !small {
        ctx.team.wait();
    }
    prepared
}
