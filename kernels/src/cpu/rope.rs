//! `qk_rope_store`: norm of each query and key head, rope, and K and V to the cache.
//!
//! Work is cut over (row, head). K and V are rounded to the cache's type here; attention reads
//! nothing else, so prefill, decode and a prefix hit see the same numbers.

use crate::batch::{Batch, NO_SLOT};
use crate::cpu::buffer::Parameters;
use crate::cpu::command::WorkerCtx;
use crate::cpu::kv::Plane;
use crate::cpu::program::CpuProgram;
use crate::ops::{Norm, QkRopeStore, Rope, RopeStyle};

/// Runs this worker's share of the (row, head) pairs: query heads first, then KV heads.
pub(crate) fn run(op: &QkRopeStore<CpuProgram>, ctx: &WorkerCtx<'_>, batch: &Batch) {
    let heads = op.heads;
    let turns = |table: fn(&Rope<CpuProgram>) -> &Parameters| {
        op.rope.as_ref().map(|rope| Turn { table: table(rope), rope })
    };
    let (of_query, of_key) = (turns(|rope| &rope.queries), turns(|rope| &rope.keys));
    let per_row = heads.num_q + heads.num_kv;
    let slots = &batch.groups[op.group].slots;
    for item in ctx.team.share(batch.num_tokens() * per_row) {
        let (row, head) = (item / per_row, item % per_row);
        let position = batch.positions[row] as usize;
        // SAFETY: head segments of a row are disjoint, and each (row, head) is one worker's.
        let segment = |index: usize| unsafe {
            let start = index * heads.head_dim;
            op.qkv.segment_mut(row, start..start + heads.head_dim)
        };
        let q_or_k = segment(head);
        if head < heads.num_q {
            turn(q_or_k, op.q_norm.as_ref(), of_query.as_ref(), position);
            continue;
        }
        turn(q_or_k, op.k_norm.as_ref(), of_key.as_ref(), position);
        let slot = slots[row];
        if slot == NO_SLOT {
            continue;
        }
        let kv_head = head - heads.num_q;
        let values = segment(head + heads.num_kv);
        // SAFETY: a slot belongs to one row of the batch, a row's head to one worker; attention
        // reads after the barrier.
        unsafe {
            op.kv.write(op.layer, Plane::Keys, slot as usize, kv_head, q_or_k);
            op.kv.write(op.layer, Plane::Values, slot as usize, kv_head, values);
        }
    }
}

/// A rope with the table of queries or of keys.
struct Turn<'a> {
    table: &'a Parameters,
    rope: &'a Rope<CpuProgram>,
}

/// Norm, then rope, of one head.
fn turn(
    head: &mut [f32],
    norm: Option<&Norm<CpuProgram>>,
    turn: Option<&Turn<'_>>,
    position: usize,
) {
    if let Some(norm) = norm {
        let sum = sum_of_squares(head);
        let inverse = 1.0 / (sum / head.len() as f32 + norm.eps).sqrt();
        for (x, weight) in head.iter_mut().zip(norm.weight.values()) {
            *x = *x * inverse * weight;
        }
    }
    let Some(Turn { table, rope }) = turn else { return };
    let half = rope.rotary_dim / 2;
    let table = &table.values()[position * rope.rotary_dim..][..rope.rotary_dim];
    let (cos, sin) = table.split_at(half);
    match rope.style {
        RopeStyle::Halves => {
            let (low, high) = head[..rope.rotary_dim].split_at_mut(half);
            for i in 0..half {
                (low[i], high[i]) = rotate(low[i], high[i], cos[i], sin[i]);
            }
        }
        RopeStyle::Interleaved => {
            for i in 0..half {
                let pair = &mut head[2 * i..2 * i + 2];
                (pair[0], pair[1]) = rotate(pair[0], pair[1], cos[i], sin[i]);
            }
        }
    }
}

#[inline(always)]
fn rotate(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a * cos - b * sin, b * cos + a * sin)
}

/// Eight running sums over the elements, folded at the end: fixed order, any length.
fn sum_of_squares(head: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for chunk in head.chunks(8) {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let four: [f32; 4] = std::array::from_fn(|i| sums[i] + sums[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests;
