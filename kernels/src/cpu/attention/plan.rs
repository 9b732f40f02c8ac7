//! Which worker computes which tiles of a step.
//!
//! All tiles lie on one line, each as long as its work, in the order sequence, KV head, rows. The
//! line is cut into equal shares. A tile belongs to the share in which it starts; but a single row
//! that a cut goes through is split between workers by units, since one long context may be all
//! the work there is. Every worker derives the same cuts from the batch: nothing is stored.

use std::ops::Range;

use super::tile::{Tile, TileShape};
use crate::batch::{Batch, GroupBatch, NO_SLOT};

/// Work of loading a key, in units of one score row's work with it.
const LOAD_COST: u64 = 8;

/// The division of one op's work in one step.
pub(super) struct Plan<'a> {
    shape: TileShape,
    batch: &'a Batch,
    group: &'a GroupBatch,
    workers: u64,
    total: u64,
}

/// Work of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The tile.
    pub(super) tile: Tile,
    /// Its units, or those of them that are this worker's.
    pub(super) units: Range<usize>,
    /// Number of the cut that splits the tile, if one does.
    pub(super) cut: Option<usize>,
}

/// A tile and its interval of the line.
struct Placed {
    tile: Tile,
    line: Range<u64>,
}

impl<'a> Plan<'a> {
    /// Divides `batch` between `workers`.
    pub(super) fn new(
        shape: TileShape,
        batch: &'a Batch,
        group: &'a GroupBatch,
        workers: usize,
    ) -> Self {
        let mut plan = Plan { shape, batch, group, workers: workers as u64, total: 0 };
        plan.total = (0..batch.num_seqs()).map(|seq| plan.seq_cost(seq)).sum();
        plan
    }

    /// Calls `work` for each piece of `worker`.
    pub(super) fn for_each_piece(&self, worker: usize, mut work: impl FnMut(Piece)) {
        let share = self.cut(worker as u64)..self.cut(worker as u64 + 1);
        self.walk(&share, |placed| {
            let units = placed.tile.units(&self.shape);
            match self.first_cut_within(&placed) {
                Some(cut) => {
                    let units = self.units_of(&placed, units, &share);
                    if !units.is_empty() {
                        work(Piece { tile: placed.tile, units, cut: Some(cut) });
                    }
                }
                None if share.contains(&placed.line.start) => {
                    work(Piece { tile: placed.tile, units, cut: None });
                }
                None => {}
            }
        });
    }

    /// Whether any tile may be split. All workers get the same answer.
    pub(super) fn may_split(&self) -> bool {
        let reaches_beyond_a_unit = |&kv_len: &u32| kv_len as usize > self.shape.unit;
        self.workers > 1 && self.batch.kv_len.iter().any(reaches_beyond_a_unit)
    }

    /// The tile that is split and whose first cut is number `cut`.
    pub(super) fn split_tile(&self, cut: usize) -> Option<Tile> {
        let at = self.cut(cut as u64);
        let mut found = None;
        self.walk(&(at.saturating_sub(1)..at), |placed| {
            if self.first_cut_within(&placed) == Some(cut) {
                found = Some(placed.tile);
            }
        });
        found
    }

    /// Where share `worker` starts.
    fn cut(&self, worker: u64) -> u64 {
        self.total * worker / self.workers
    }

    /// Calls `visit` for each tile that overlaps `range`.
    fn walk(&self, range: &Range<u64>, mut visit: impl FnMut(Placed)) {
        let mut at = 0;
        for seq in 0..self.batch.num_seqs() {
            let (first_row, num_rows) = self.rows(seq);
            let head_cost = self.head_cost(seq);
            for kv_head in 0..self.shape.num_kv {
                if at >= range.end {
                    return;
                }
                let head_end = at + head_cost;
                if head_end > range.start {
                    for start in (0..num_rows).step_by(self.shape.rows_max()) {
                        let num_rows = self.shape.rows_max().min(num_rows - start);
                        let tile = self.tile(seq, kv_head, first_row, start, num_rows);
                        let line = at..at + self.tile_cost(&tile);
                        at = line.end;
                        if line.start < range.end && line.end > range.start {
                            visit(Placed { tile, line });
                        }
                    }
                }
                at = head_end;
            }
        }
    }

    /// The lowest cut strictly inside a tile that may be split: one row, several units.
    fn first_cut_within(&self, placed: &Placed) -> Option<usize> {
        if placed.tile.num_rows > 1 || placed.tile.units(&self.shape).len() < 2 {
            return None;
        }
        // The first worker whose cut lies beyond the start.
        let mut worker = placed.line.start * self.workers / self.total;
        while self.cut(worker) <= placed.line.start {
            worker += 1;
        }
        (self.cut(worker) < placed.line.end).then_some(worker as usize)
    }

    /// The units of a split tile whose middle lies in `share`.
    fn units_of(&self, placed: &Placed, units: Range<usize>, share: &Range<u64>) -> Range<usize> {
        let keys = self.shape.keys(placed.tile.position, 1);
        let is_mine = |unit: &usize| {
            let start = (unit * self.shape.unit).max(keys.start);
            let end = ((unit + 1) * self.shape.unit).min(keys.end);
            let middle = (start + end) / 2 - keys.start;
            share.contains(&(placed.line.start + middle as u64 * self.key_cost(1)))
        };
        let first = units.clone().find(is_mine).unwrap_or(units.end);
        first..(first..units.end).find(|unit| !is_mine(unit)).unwrap_or(units.end)
    }

    /// First row and number of rows of a sequence, without the padding at its end.
    fn rows(&self, seq: usize) -> (usize, usize) {
        let row = self.batch.query_start[seq] as usize;
        let slots = &self.group.slots[row..row + self.batch.query_len(seq)];
        (row, slots.iter().position(|&slot| slot == NO_SLOT).unwrap_or(slots.len()))
    }

    fn tile(
        &self,
        seq: usize,
        kv_head: usize,
        first_row: usize,
        start: usize,
        num_rows: usize,
    ) -> Tile {
        let first_position = self.batch.kv_len[seq] as usize - self.batch.query_len(seq);
        Tile { seq, kv_head, row: first_row + start, num_rows, position: first_position + start }
    }

    fn seq_cost(&self, seq: usize) -> u64 {
        self.head_cost(seq) * self.shape.num_kv as u64
    }

    fn head_cost(&self, seq: usize) -> u64 {
        let (first_row, num_rows) = self.rows(seq);
        let starts = (0..num_rows).step_by(self.shape.rows_max());
        let cost = |start: usize| {
            let num_rows = self.shape.rows_max().min(num_rows - start);
            self.tile_cost(&self.tile(seq, 0, first_row, start, num_rows))
        };
        starts.map(cost).sum()
    }

    fn tile_cost(&self, tile: &Tile) -> u64 {
        let keys = self.shape.keys(tile.position, tile.num_rows);
        keys.len() as u64 * self.key_cost(tile.num_rows)
    }

    fn key_cost(&self, num_rows: usize) -> u64 {
        (num_rows * self.shape.group) as u64 + LOAD_COST
    }
}

#[cfg(test)]
mod tests;
