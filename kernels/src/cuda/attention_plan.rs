//! Cuts a step's attention into pieces: what each block of the kernels computes.
//!
//! Sequences are cut into tiles of rows. If there are fewer than the device has places for blocks,
//! long tiles are split by units of their keys, and merged afterwards. Kernels give the same bits
//! however rows are tiled and tiles are split, so all that matters here is that everything is
//! somebody's, once, and that the blocks end at about the same time: the longest start first.

use std::cmp::Reverse;
use std::ops::Range;

use crate::batch::{Batch, GroupBatch, NO_SLOT};
use crate::cuda::attention::{AttentionPiece, UNIT, WHOLE};
use crate::device::Limits;

/// Rows of the tiles that the kernels take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileRows {
    /// Of tiles that read their keys fast.
    pub(crate) narrow: u32,
    /// Of tiles that read them for many rows, if there is a kernel.
    pub(crate) wide: Option<u32>,
}

/// What plans depend on besides the batch: layers of one shape and group share their plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanShape {
    /// Query heads of a KV head.
    pub(crate) group: u32,
    /// KV heads: each piece is as many blocks.
    pub(crate) num_kv: u32,
    /// Keys that a row sees; `None`: all.
    pub(crate) window: Option<u32>,
    /// Of the kernels.
    pub(crate) rows: TileRows,
    /// Blocks that the device runs at once: its SMs times the blocks of one.
    pub(crate) blocks: u32,
}

/// The most that plans of steps within limits take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanRoom {
    /// [`AttentionPlan::pieces`].
    pub(crate) pieces: usize,
    /// Rows of the workspace, for each KV head.
    pub(crate) partial_rows: usize,
    tiles: usize,
}

/// The pieces of one step.
#[derive(Debug)]
pub(crate) struct AttentionPlan {
    shape: PlanShape,
    room: PlanRoom,
    /// All tiles, with all their units.
    tiles: Vec<AttentionPiece>,
    /// Wide ones, narrow ones, then the tiles that are split.
    pieces: Vec<AttentionPiece>,
    num_wide: u32,
    num_narrow: u32,
}

/// A unit's time in a wide tile, in those of narrow ones: four times the products by twice the
/// warps.
const WIDE_COST: u64 = 2;

/// Score rows that may be split when they are as long as a sequence may be. More of them fill the
/// device without, and the workspace stays a small part of the cache.
const SPLIT_ROWS: usize = 64;

impl PlanRoom {
    /// Workspace in floats, for heads of `head_dim`.
    pub(crate) fn partial_floats(&self, shape: &PlanShape, head_dim: usize) -> usize {
        // Each row has its values, a maximum and a sum.
        self.partial_rows * shape.num_kv as usize * (head_dim + 2)
    }
}

impl PlanShape {
    /// What plans of steps within `limits` take.
    pub(crate) fn room(&self, limits: &Limits) -> PlanRoom {
        let tile_rows = self.rows.wide.unwrap_or(self.rows.narrow) as usize;
        // A sequence has one tile at most that is not full.
        let tiles = limits.max_tokens / tile_rows + limits.max_seqs.min(limits.max_tokens);
        let (pieces, split) = self.most(tiles);
        let mut units = limits.max_model_len.div_ceil(UNIT as usize);
        if let Some(window) = self.window {
            // Any that many neighbouring keys.
            let keys = window as usize + tile_rows - 1;
            units = units.min(keys.div_ceil(UNIT as usize) + 1);
        }
        let rows = SPLIT_ROWS.min(limits.max_tokens.saturating_mul(self.group as usize));
        PlanRoom {
            pieces: pieces + split,
            partial_rows: units.saturating_mul(rows).min(WHOLE as usize),
            tiles,
        }
    }

    /// The most that a plan of `tiles` tiles takes: pieces of the kernels, tiles that are split.
    fn most(&self, tiles: usize) -> (usize, usize) {
        // A tile is cut wherever it has had another share: no oftener than there are shares.
        let cuts = self.shares() as usize;
        (tiles + cuts, tiles.min(cuts))
    }

    /// Pieces that fill the device.
    fn shares(&self) -> u64 {
        u64::from(self.blocks.div_ceil(self.num_kv).max(1))
    }

    /// Units that hold a key seen by any of `rows` rows.
    fn units(&self, position: u32, rows: u32) -> Range<u32> {
        if rows == 0 {
            return 0..0;
        }
        let first_key = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first_key / UNIT..(position + rows).div_ceil(UNIT)
    }

    fn is_wide(&self, piece: &AttentionPiece) -> bool {
        piece.num_rows > self.rows.narrow
    }

    fn cost(&self, piece: &AttentionPiece) -> u64 {
        u64::from(piece.num_units) * if self.is_wide(piece) { WIDE_COST } else { 1 }
    }

    /// Wide ones first, each kind from the longest on.
    fn order(&self, piece: &AttentionPiece) -> (bool, Reverse<u64>, u32, u32) {
        (!self.is_wide(piece), Reverse(self.cost(piece)), piece.row, piece.first_unit)
    }
}

impl AttentionPlan {
    /// An empty plan, with room for all steps within `limits`.
    pub(crate) fn with_room(shape: PlanShape, limits: &Limits) -> Self {
        let room = shape.room(limits);
        let (mut tiles, mut pieces) = (Vec::new(), Vec::new());
        for (list, room) in [(&mut tiles, room.tiles), (&mut pieces, room.pieces)] {
            // A refusal only means that the list grows later.
            drop(list.try_reserve_exact(room));
        }
        AttentionPlan { shape, room, tiles, pieces, num_wide: 0, num_narrow: 0 }
    }

    /// Forgets all pieces.
    pub(crate) fn clear(&mut self) {
        self.tiles.clear();
        self.pieces.clear();
        (self.num_wide, self.num_narrow) = (0, 0);
    }

    /// Plans a step. Allocates nothing if it is within the limits.
    pub(crate) fn make(&mut self, batch: &Batch, group: &GroupBatch) {
        self.clear();
        for seq in 0..batch.num_seqs() {
            self.cut_rows(batch, group, seq);
        }
        let shape = self.shape;
        // Where the workspace is not enough for all, it is for the longest.
        self.tiles.sort_unstable_by_key(|tile| shape.order(tile));
        self.cut_units();
        self.pieces.sort_unstable_by_key(|piece| shape.order(piece));
        self.num_wide = self.pieces.partition_point(|piece| shape.is_wide(piece)) as u32;
        self.num_narrow = self.pieces.len() as u32 - self.num_wide;
        self.pieces.extend(self.tiles.iter().filter(|tile| tile.partial != WHOLE));
    }

    /// Pads the plan of a step in which up to `rows` sequences have a row each, so that launches depend
    /// on `rows` alone:
    ///
    /// ```text
    ///   narrow pieces │ of padding │ split tiles │ of padding
    ///   ├──── most(rows).0 ────────┼──── most(rows).1 ───────┤
    /// ```
    ///
    /// Blocks of padding find nothing to do.
    pub(crate) fn pad(&mut self, rows: usize) {
        let (most_narrow, most_split) = self.shape.most(rows);
        let (narrow, split) = (self.narrow(), self.split());
        let fits = narrow.len() <= most_narrow && split.len() <= most_split;
        assert!(self.num_wide == 0 && fits, "{rows} rows in {narrow:?}, split {split:?}");
        self.pieces.resize(most_narrow + most_split, AttentionPiece::default());
        self.pieces.copy_within(split.start as usize..split.end as usize, most_narrow);
        self.pieces[narrow.len()..most_narrow].fill(AttentionPiece::default());
        self.num_narrow = most_narrow as u32;
    }

    /// All that the device needs of the plan; the kernels take parts of it.
    pub(crate) fn pieces(&self) -> &[AttentionPiece] {
        &self.pieces
    }

    /// Pieces of the wide kernel.
    pub(crate) fn wide(&self) -> Range<u32> {
        0..self.num_wide
    }

    /// Pieces of the narrow kernel.
    pub(crate) fn narrow(&self) -> Range<u32> {
        self.num_wide..self.num_wide + self.num_narrow
    }

    /// Tiles that are to be merged.
    pub(crate) fn split(&self) -> Range<u32> {
        self.num_wide + self.num_narrow..self.pieces.len() as u32
    }

    /// Appends the tiles of a sequence. Padded rows are in tiles, which clear them, but see nothing.
    fn cut_rows(&mut self, batch: &Batch, group: &GroupBatch, seq: usize) {
        let TileRows { narrow, wide } = self.shape.rows;
        let rows = batch.query_start[seq]..batch.query_start[seq + 1];
        let first_position = batch.kv_len[seq] - (rows.end - rows.start);
        let slots = &group.slots[rows.start as usize..rows.end as usize];
        let kept = slots.iter().position(|&slot| slot == NO_SLOT).unwrap_or(slots.len()) as u32;
        let mut row = rows.start;
        while row < rows.end {
            let left = rows.end - row;
            let num_rows = left.min(wide.filter(|_| left > narrow).unwrap_or(narrow));
            let position = first_position + (row - rows.start);
            let seeing = (rows.start + kept).saturating_sub(row).min(num_rows);
            let units = self.shape.units(position, seeing);
            self.tiles.push(AttentionPiece {
                table: group.table_start[seq],
                num_blocks: group.table_start[seq + 1] - group.table_start[seq],
                row,
                num_rows,
                position,
                first_unit: units.start,
                num_units: units.end - units.start,
                partial: WHOLE,
            });
            row += num_rows;
        }
    }

    /// Makes pieces of the tiles: those that are longer than a share of the whole are split.
    fn cut_units(&mut self) {
        let total: u64 = self.tiles.iter().map(|tile| self.shape.cost(tile)).sum();
        let share = total.div_ceil(self.shape.shares()).max(1);
        let mut partial = 0;
        for tile in &mut self.tiles {
            let num_pieces =
                self.shape.cost(tile).div_ceil(share).min(tile.num_units.into()) as u32;
            let unit_rows = tile.num_rows * self.shape.group;
            let rows = u64::from(tile.num_units) * u64::from(unit_rows);
            if num_pieces < 2 || partial + rows > self.room.partial_rows as u64 {
                self.pieces.push(*tile);
                continue;
            }
            tile.partial = partial as u32;
            partial += rows;
            let cut = |piece: u32| {
                (u64::from(tile.num_units) * u64::from(piece) / u64::from(num_pieces)) as u32
            };
            self.pieces.extend((0..num_pieces).map(|piece| AttentionPiece {
                first_unit: tile.first_unit + cut(piece),
                num_units: cut(piece + 1) - cut(piece),
                partial: tile.partial + cut(piece) * unit_rows,
                ..*tile
            }));
        }
    }
}
