//! Paged attention: one op for decode, prefill and mixed steps, reading the cache alone.
//!
//! Keys are cut at absolute multiples of U tokens. Each unit starts its softmax afresh (`unit`),
//! and units merge in ascending order (`softmax`), so the bits of a (row, head) depend on its
//! position, the cache and U: not on the chunk it came in, nor on which worker computed what
//! (`plan`). Nothing is allocated in a step.

mod partial;
mod plan;
mod product;
mod softmax;
mod tile;
mod unit;

#[cfg(test)]
mod tests;

use self::partial::{Partial, ScratchShape, TileScratch};
use self::plan::{Piece, Plan};
use self::softmax::{Finish, Merge};
use self::tile::{Tile, TileShape};
use self::unit::KvView;
use crate::batch::{Batch, GroupBatch, NO_SLOT};
use crate::cpu::command::{AttentionUnit, ScratchPlan, WorkerCtx};
use crate::cpu::program::CpuProgram;
use crate::device::Limits;
use crate::ops::Attention;

/// Plans the scratch of steps within `limits`.
pub(crate) fn plan(
    op: &Attention<CpuProgram>,
    unit: AttentionUnit,
    plan: &mut ScratchPlan,
    limits: &Limits,
    workers: usize,
) {
    let scratch = ScratchShape::new(&shape_of(op, unit), op.heads.head_dim);
    plan.need_own(scratch.own_len() * size_of::<f32>());
    let units_max = limits.max_model_len.div_ceil(unit.0);
    plan.need_shared(scratch.shared_len(workers, units_max) * size_of::<f32>());
}

/// Runs this worker's part.
pub(crate) fn run(
    op: &Attention<CpuProgram>,
    unit: AttentionUnit,
    ctx: &WorkerCtx<'_>,
    batch: &Batch,
) {
    let shape = shape_of(op, unit);
    let group = &batch.groups[op.group];
    let step = Step {
        op,
        shape,
        ctx,
        batch,
        group,
        scratch: ScratchShape::new(&shape, op.heads.head_dim),
        units_max: batch.kv_len.iter().max().map_or(0, |&len| (len as usize).div_ceil(unit.0)),
    };
    step.clear_padding();
    let plan = Plan::new(shape, batch, group, ctx.team.workers);
    plan.for_each_piece(ctx.team.worker, |piece| step.piece(piece));
    if plan.may_split() {
        ctx.team.wait();
        if let Some(tile) = plan.split_tile(ctx.team.worker) {
            step.merge_split(&tile, ctx.team.worker);
        }
    }
}

fn shape_of(op: &Attention<CpuProgram>, unit: AttentionUnit) -> TileShape {
    TileShape {
        group: op.heads.num_q / op.heads.num_kv,
        num_kv: op.heads.num_kv,
        unit: unit.0,
        window: op.window.map_or(usize::MAX, |window| window as usize),
    }
}

/// One worker's view of the op and the step.
struct Step<'a> {
    op: &'a Attention<CpuProgram>,
    shape: TileShape,
    ctx: &'a WorkerCtx<'a>,
    batch: &'a Batch,
    group: &'a GroupBatch,
    scratch: ScratchShape,
    /// Units of the longest sequence: no more than planned, as its length was admitted.
    units_max: usize,
}

impl Step<'_> {
    /// Zeroes this worker's share of the rows that belong to no sequence.
    fn clear_padding(&self) {
        for row in self.ctx.team.share(self.batch.num_tokens()) {
            if self.group.slots[row] == NO_SLOT {
                // SAFETY: tiles leave padded rows out, and shares do not overlap.
                unsafe { self.op.out.row_mut(row) }.fill(0.0);
            }
        }
    }

    /// A tile as a whole, or this worker's units of a split one.
    fn piece(&self, piece: Piece) {
        let Piece { tile, units, cut } = piece;
        // SAFETY: planned for this op; this worker's alone, and used once at a time.
        let scratch = unsafe { self.scratch.own(self.ctx.own().cast()) };
        let TileScratch { q, scores, unit: mut partial, mut state } = scratch;
        self.load_queries(&tile, q);
        let kv = self.view(&tile);
        let Some(cut) = cut else {
            for unit in units {
                let rows = tile.rows(&self.shape, unit);
                kv.attend(&rows, q, scores, &mut partial);
                self.ctx.isa.dispatch(Merge { state: &mut state, unit: &partial, rows });
            }
            self.finish(&tile, state);
            return;
        };
        for unit in units {
            // SAFETY: a unit of a split tile is one worker's until the barrier.
            let mut partial = unsafe { self.split_unit(&tile, cut, unit) };
            kv.attend(&tile.rows(&self.shape, unit), q, scores, &mut partial);
        }
    }

    /// Merges the units of the row that `cut` splits; behind a barrier after all pieces.
    fn merge_split(&self, tile: &Tile, cut: usize) {
        // SAFETY: as in `piece`, which has ended.
        let TileScratch { mut state, .. } = unsafe { self.scratch.own(self.ctx.own().cast()) };
        for unit in tile.units(&self.shape) {
            let rows = tile.rows(&self.shape, unit);
            // SAFETY: behind the barrier only the worker of this cut looks at the tile's units.
            let partial = unsafe { self.split_unit(tile, cut, unit) };
            self.ctx.isa.dispatch(Merge { state: &mut state, unit: &partial, rows });
        }
        self.finish(tile, state);
    }

    /// Where a split tile's unit lies in the team's scratch.
    ///
    /// # Safety
    /// Nobody else uses that unit while the result lives.
    unsafe fn split_unit<'a>(&self, tile: &Tile, cut: usize, unit: usize) -> Partial<'a> {
        let unit = unit - tile.units(&self.shape).start;
        // SAFETY: planned for this op with at least `units_max` units a cut; cuts count from 1.
        unsafe { self.scratch.shared(self.ctx.shared().cast(), self.units_max, cut - 1, unit) }
    }

    fn view(&self, tile: &Tile) -> KvView<'_> {
        KvView {
            kv: &self.op.kv,
            layer: self.op.layer,
            kv_head: tile.kv_head,
            block_table: self.group.table(tile.seq),
            isa: self.ctx.isa,
            soft_cap: self.op.soft_cap,
        }
    }

    /// Gathers the tile's query heads, scaled.
    fn load_queries(&self, tile: &Tile, q: &mut [f32]) {
        let width = self.shape.group * self.op.heads.head_dim;
        for (row, q) in q.chunks_exact_mut(width).take(tile.num_rows).enumerate() {
            // SAFETY: no worker writes qkv in this command.
            let from = unsafe { self.op.qkv.row(tile.row + row) };
            let from = &from[tile.kv_head * width..(tile.kv_head + 1) * width];
            for (q, &from) in q.iter_mut().zip(from) {
                *q = from * self.op.scale;
            }
        }
    }

    /// Joins sinks, divides, and writes the tile's output.
    fn finish(&self, tile: &Tile, mut state: Partial<'_>) {
        let group = self.shape.group;
        let head_dim = self.op.heads.head_dim;
        let heads = tile.kv_head * group..(tile.kv_head + 1) * group;
        let sinks = self.op.sinks.as_ref().map(|sinks| &sinks.values()[heads.clone()]);
        let num_score_rows = tile.num_rows * group;
        self.ctx.isa.dispatch(Finish { state: &mut state, num_score_rows, sinks });
        let values = state.values.chunks_exact(state.stride());
        for (score_row, values) in values.take(num_score_rows).enumerate() {
            let head = heads.start + score_row % group;
            let columns = head * head_dim..(head + 1) * head_dim;
            // SAFETY: a (row, KV head) is in one tile, and a tile is finished by one worker.
            let out = unsafe { self.op.out.segment_mut(tile.row + score_row / group, columns) };
            out.copy_from_slice(&values[..head_dim]);
        }
    }
}
