//! Cuts a step's attention into pieces: what each block of the kernels computes.
//!
//! Sequences are cut into tiles of rows. If there are fewer than the device has places for blocks,
//! long tiles are split by units of their keys, and the last of their pieces merges them. Narrow tiles
//! give the same bits however rows are tiled and tiles are split, so all that matters here is that
//! everything is somebody's, once, and that the blocks of a launch end at about the same time: the
//! longest start first.

use std::cmp::Reverse;
use std::ops::Range;

use crate::batch::{Batch, GroupBatch, NO_SLOT};
use crate::cuda::attention::{AttentionPiece, UNIT, WHOLE};
use crate::cuda::attention_split::Split;
use crate::device::Limits;

/// Tiles of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileKind {
    /// Rows of a tile.
    pub(crate) rows: u32,
    /// Blocks that the device runs at once.
    pub(crate) blocks: u32,
}

/// What plans depend on besides the batch: layers of one shape and group share their plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanShape {
    /// Query heads of a block.
    pub(crate) group: u32,
    /// Groups of so many heads: each piece is as many blocks.
    pub(crate) groups: u32,
    /// Size of a head.
    pub(crate) head_dim: u32,
    /// Keys that a row sees; `None`: all.
    pub(crate) window: Option<u32>,
    /// Tiles that read their keys fast.
    pub(crate) narrow: TileKind,
    /// Tiles that read them for many rows, if there is a kernel.
    pub(crate) wide: Option<TileKind>,
    /// Whether a piece of a wide tile leaves one part in the workspace, not one for each unit.
    pub(crate) wide_in_parts: bool,
}

/// The most that plans of steps within limits take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanRoom {
    /// [`AttentionPlan::pieces`].
    pub(crate) pieces: usize,
    /// Rows of the workspace, for each group of heads.
    pub(crate) partial_rows: usize,
    /// Words in which pieces count those that have arrived.
    pub(crate) arrivals: usize,
    tiles: usize,
}

/// The pieces of one step.
#[derive(Debug)]
pub(crate) struct AttentionPlan {
    shape: PlanShape,
    room: PlanRoom,
    /// All tiles, with all their units.
    tiles: Vec<AttentionPiece>,
    /// Wide ones, then narrow ones.
    pieces: Vec<AttentionPiece>,
    num_wide: u32,
    num_split: u32,
}

/// Score rows of one group that may be split though they are as long as a sequence may be, whatever
/// room they take; and bytes up to which more may, as many as have a use for it.
const SPLIT_ROWS: usize = 64;
const SPLIT_BYTES: usize = 128 << 20;

/// Turns in which a device may compute the pieces of a launch, to end at about the same time. Graphs
/// launch room for all narrow ones, so those are few.
const NARROW_TURNS: u32 = 2;
const WIDE_TURNS: u32 = 4;

impl PlanRoom {
    /// Workspace in floats.
    pub(crate) fn partial_floats(&self, shape: &PlanShape) -> usize {
        self.partial_rows * shape.groups as usize * shape.row_floats()
    }
}

impl PlanShape {
    /// What plans of steps within `limits` take.
    pub(crate) fn room(&self, limits: &Limits) -> PlanRoom {
        let tile_rows = self.wide.unwrap_or(self.narrow).rows as usize;
        // A sequence has one tile at most that is not full.
        let tiles = limits.max_tokens / tile_rows + limits.max_seqs.min(limits.max_tokens);
        let narrow = self.most(tiles);
        let wide = self.wide.map_or(0, |kind| (WIDE_TURNS * self.places(kind)) as usize);
        let mut units = limits.max_model_len.div_ceil(UNIT as usize);
        if let Some(window) = self.window {
            // Any that many neighbouring keys.
            let keys = window as usize + tile_rows - 1;
            units = units.min(keys.div_ceil(UNIT as usize) + 1);
        }
        PlanRoom {
            pieces: narrow + wide + tiles,
            partial_rows: self.partial_rows(units, limits),
            // A tile that is split has two pieces or more of those.
            arrivals: (narrow + wide) * self.groups as usize,
            tiles,
        }
    }

    /// Rows of the workspace, where tiles have up to `units` units: for as many tiles as fill the device,
    /// if that is not too much.
    fn partial_rows(&self, units: usize, limits: &Limits) -> usize {
        let group = self.group as usize;
        let most = |rows: usize| units.saturating_mul(rows);
        let there = limits.max_tokens.saturating_mul(group);
        let narrow = most(there.min(self.places(self.narrow) as usize * group));
        let in_parts = self.wide.filter(|_| self.wide_in_parts);
        let wide = in_parts
            .map_or(0, |kind| (WIDE_TURNS * self.places(kind) * kind.rows) as usize * group);
        let small = SPLIT_BYTES / (self.groups as usize * self.row_floats() * 4);
        let least = most(SPLIT_ROWS.min(there));
        narrow.max(wide).min(most(there)).min(small.max(least)).min(WHOLE as usize)
    }

    /// The most pieces that a plan of `tiles` narrow tiles has.
    fn most(&self, tiles: usize) -> usize {
        let places = self.places(self.narrow) as usize;
        let turns = tiles.min(NARROW_TURNS as usize);
        (tiles + places).max(turns * places)
    }

    /// Floats of a row in the workspace: its values, a maximum and a sum, and two that are nobody's.
    fn row_floats(&self) -> usize {
        self.head_dim as usize + 4
    }

    /// Pieces that fill the device.
    fn places(&self, kind: TileKind) -> u32 {
        (kind.blocks / self.groups).max(1)
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
        piece.num_rows > self.narrow.rows
    }

    /// Wide ones first, each kind from the longest on.
    fn order(&self, piece: &AttentionPiece) -> (bool, Reverse<u32>, u32, u32) {
        (!self.is_wide(piece), Reverse(piece.num_units), piece.row, piece.first_unit)
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
        AttentionPlan { shape, room, tiles, pieces, num_wide: 0, num_split: 0 }
    }

    /// Forgets all pieces.
    pub(crate) fn clear(&mut self) {
        self.tiles.clear();
        self.pieces.clear();
        (self.num_wide, self.num_split) = (0, 0);
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
    }

    /// Pads the plan of a step in which up to `rows` sequences have a row each, so that launches depend
    /// on `rows` alone. Blocks of padding find nothing to do.
    pub(crate) fn pad(&mut self, rows: usize) {
        let (most, narrow) = (self.shape.most(rows), self.narrow());
        assert!(self.num_wide == 0 && narrow.len() <= most, "{rows} rows in {narrow:?}");
        self.pieces.resize(most, AttentionPiece::default());
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
        self.num_wide..self.pieces.len() as u32
    }

    /// Tiles that several pieces share.
    #[cfg(test)]
    pub(crate) fn num_split(&self) -> usize {
        self.num_split as usize
    }

    /// Appends the tiles of a sequence. Padded rows are in tiles, which clear them, but see nothing.
    fn cut_rows(&mut self, batch: &Batch, group: &GroupBatch, seq: usize) {
        let PlanShape { narrow: TileKind { rows: narrow, .. }, wide, .. } = self.shape;
        let wide = wide.map(|kind| kind.rows);
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
                ..AttentionPiece::default()
            });
            row += num_rows;
        }
    }

    /// Makes pieces of the tiles: those of a launch that are longer than the others are split.
    fn cut_units(&mut self) {
        let shape = self.shape;
        let num_wide = self.tiles.partition_point(|tile| shape.is_wide(tile));
        let num_tiles = self.tiles.len();
        let wide = (shape.wide.unwrap_or(shape.narrow), WIDE_TURNS, shape.wide_in_parts);
        let narrow = (shape.narrow, NARROW_TURNS, false);
        let mut used = 0;
        for (tiles, (kind, turns, in_parts)) in [(0..num_wide, wide), (num_wide..num_tiles, narrow)]
        {
            let split = Split { places: shape.places(kind), turns };
            let units = self.tiles[tiles.clone()].iter().map(|tile| tile.num_units);
            let longest = split.longest_piece(units);
            for at in tiles {
                used += self.cut_tile(at, longest, in_parts, used);
            }
        }
    }

    /// Makes pieces of a tile, none longer than `longest` where the workspace, of which `used` rows are
    /// taken, has room. Returns the rows that they take there.
    fn cut_tile(&mut self, at: usize, longest: u32, in_parts: bool, used: u64) -> u64 {
        let tile = self.tiles[at];
        let num_pieces = tile.num_units.div_ceil(longest);
        let unit_rows = tile.num_rows * self.shape.group;
        let parts = if in_parts { num_pieces } else { tile.num_units };
        let rows = u64::from(parts) * u64::from(unit_rows);
        if num_pieces < 2 || used + rows > self.room.partial_rows as u64 {
            self.pieces.push(tile);
            return 0;
        }
        let meeting = self.num_split;
        self.num_split += 1;
        let cut = |piece: u32| {
            (u64::from(tile.num_units) * u64::from(piece) / u64::from(num_pieces)) as u32
        };
        self.pieces.extend((0..num_pieces).map(|piece| {
            let parts_before = if in_parts { piece } else { cut(piece) };
            AttentionPiece {
                first_unit: tile.first_unit + cut(piece),
                num_units: cut(piece + 1) - cut(piece),
                partial: used as u32 + parts_before * unit_rows,
                parts_before,
                num_pieces,
                meeting,
                ..tile
            }
        }));
        rows
    }
}
