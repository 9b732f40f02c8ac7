//! `gather_rows`: copies the rows that need logits, so that the head runs over those alone.

use crate::batch::Batch;
use crate::cpu::command::WorkerCtx;
use crate::cpu::program::CpuProgram;
use crate::ops::GatherRows;

/// Runs this worker's share of the logits rows.
pub(crate) fn run(op: &GatherRows<CpuProgram>, ctx: &WorkerCtx<'_>, batch: &Batch) {
    for index in ctx.team.share(batch.logits.len()) {
        // SAFETY: x is only read, and row `index` of out is this worker's.
        unsafe {
            let from = op.x.row(batch.logits[index].row as usize);
            op.out.row_mut(index).copy_from_slice(from);
        }
    }
}
