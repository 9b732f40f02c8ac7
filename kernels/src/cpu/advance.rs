//! `advance`: remembers each slot's sampled token, so that the next step may start before the host
//! has read it.

use std::sync::atomic::Ordering;

use crate::batch::Batch;
use crate::cpu::command::{LeaderOutput, WorkerCtx};
use crate::sampling::Purpose;

/// Runs the leader's part: some stores.
pub(crate) fn run(ctx: &WorkerCtx<'_>, batch: &Batch, output: LeaderOutput) {
    if !ctx.team.is_leader() {
        return;
    }
    // SAFETY: the leader, and no command before this one keeps a reference.
    let output = unsafe { output.leader() };
    for (row, sampled) in batch.logits.iter().zip(&output.rows) {
        if matches!(row.purpose, Purpose::Sample { .. }) {
            let slot = batch.seq_slot[row.seq as usize] as usize;
            ctx.last_tokens[slot].store(sampled.token, Ordering::Relaxed);
        }
    }
}
