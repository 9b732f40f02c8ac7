//! Tiles: some consecutive rows of one sequence and the query heads of one KV head.
//!
//! All of a tile's score rows (row × head) share each K and V that is loaded. A tile says which
//! keys its rows see; the sizes are launch shape and never change a bit.

use std::ops::Range;

/// Score rows of a tile that are aimed at: a multiple of the product's six rows, small enough for
/// their scores to stay in the second-level cache.
const SCORE_ROWS: usize = 48;

/// What all tiles of an op have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileShape {
    /// Query heads of a KV head.
    pub(super) group: usize,
    /// Nkv.
    pub(super) num_kv: usize,
    /// Keys of a unit.
    pub(super) unit: usize,
    /// Keys that a row sees; `usize::MAX` for all.
    pub(super) window: usize,
}

impl TileShape {
    /// Rows of a full tile.
    pub(super) fn rows_max(&self) -> usize {
        (SCORE_ROWS / self.group).max(1)
    }

    /// Score rows of a full tile.
    pub(super) fn score_rows_max(&self) -> usize {
        self.rows_max() * self.group
    }

    /// The keys seen by any of `num_rows` rows from `position`.
    ///
    /// ```text
    /// row 0     [lo ........ position]
    /// row n-1      [lo+n-1 ........ position+n-1]
    /// ```
    pub(super) fn keys(&self, position: usize, num_rows: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window)..position + num_rows
    }

    /// The units that hold `keys`.
    pub(super) fn units(&self, keys: &Range<usize>) -> Range<usize> {
        keys.start / self.unit..keys.end.div_ceil(self.unit)
    }
}

/// Some rows of a sequence for one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Sequence of the step.
    pub(super) seq: usize,
    /// KV head.
    pub(super) kv_head: usize,
    /// First row of the step.
    pub(super) row: usize,
    /// Rows.
    pub(super) num_rows: usize,
    /// Position of the first row.
    pub(super) position: usize,
}

impl Tile {
    /// The units that any row sees.
    pub(super) fn units(&self, shape: &TileShape) -> Range<usize> {
        shape.units(&shape.keys(self.position, self.num_rows))
    }

    /// Its rows against one unit.
    pub(super) fn rows(&self, shape: &TileShape, unit: usize) -> TileRows {
        TileRows {
            shape: *shape,
            position: self.position,
            num_rows: self.num_rows,
            unit_start: unit * shape.unit,
        }
    }
}

/// Which columns (keys of one unit) the score rows of a tile see.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileRows {
    shape: TileShape,
    position: usize,
    num_rows: usize,
    unit_start: usize,
}

impl TileRows {
    /// Rows × query heads: score row `row · group + head`.
    pub(super) fn num_score_rows(&self) -> usize {
        self.num_rows * self.shape.group
    }

    /// Query heads of each row.
    pub(super) fn group(&self) -> usize {
        self.shape.group
    }

    /// Rows.
    pub(super) fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Keys of a unit.
    pub(super) fn unit(&self) -> usize {
        self.shape.unit
    }

    /// First key of this unit.
    pub(super) fn unit_start(&self) -> usize {
        self.unit_start
    }

    /// Columns that a score row sees.
    pub(super) fn visible(&self, score_row: usize) -> Range<usize> {
        self.visible_to(score_row / self.shape.group)
    }

    /// Columns that a row sees.
    pub(super) fn visible_to(&self, row: usize) -> Range<usize> {
        self.columns(self.shape.keys(self.position + row, 1))
    }

    /// Columns that any row sees.
    pub(super) fn union(&self) -> Range<usize> {
        self.columns(self.shape.keys(self.position, self.num_rows))
    }

    /// Columns that every row sees.
    pub(super) fn common(&self) -> Range<usize> {
        let (first, last) = (self.visible_to(0), self.visible_to(self.num_rows - 1));
        if last.is_empty() { 0..0 } else { last.start..first.end.max(last.start) }
    }

    /// Whether a score row sees no key before this unit.
    pub(super) fn is_first_unit(&self, score_row: usize) -> bool {
        let row = score_row / self.shape.group;
        self.shape.keys(self.position + row, 1).start >= self.unit_start
    }

    /// The part of `keys` in this unit, from its start; `0..0` if none.
    fn columns(&self, keys: Range<usize>) -> Range<usize> {
        let start = keys.start.max(self.unit_start);
        let end = keys.end.min(self.unit_start + self.shape.unit);
        if start < end { start - self.unit_start..end - self.unit_start } else { 0..0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(window: usize) -> TileShape {
        TileShape { group: 2, num_kv: 1, unit: 32, window }
    }

    #[test]
    fn columns_are_the_mask() {
        for window in [1, 5, 33, 64, usize::MAX] {
            for (position, num_rows) in [(0, 1), (0, 7), (30, 4), (63, 2), (70, 9)] {
                let tile = Tile { seq: 0, kv_head: 0, row: 0, num_rows, position };
                let shape = shape(window);
                for unit in tile.units(&shape) {
                    let rows = tile.rows(&shape, unit);
                    let sees = |row: usize, key: usize| {
                        key <= position + row && key + window.min(1 << 20) > position + row
                    };
                    let all = || 0..num_rows;
                    for column in 0..32 {
                        let key = unit * 32 + column;
                        for row in all() {
                            assert_eq!(rows.visible(2 * row + 1).contains(&column), sees(row, key));
                        }
                        let any = all().any(|row| sees(row, key));
                        assert_eq!(rows.union().contains(&column), any);
                        if rows.common().contains(&column) {
                            assert!(all().all(|row| sees(row, key)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_window_leaves_units_out() {
        let tile = Tile { seq: 0, kv_head: 0, row: 0, num_rows: 1, position: 100 };
        assert_eq!(tile.units(&shape(usize::MAX)), 0..4);
        assert_eq!(tile.units(&shape(37)), 2..4);
        assert_eq!(tile.units(&shape(5)), 3..4);
    }
}
