//! Softmax state of some score rows, in scratch memory planned at start.
//!
//! A worker computes a unit into one, merges it into another, and leaves units of a split row in
//! the team's scratch for the worker that merges them.

use super::tile::TileShape;

/// Largest score, sum of weights and weighted sum of values of each score row.
pub(super) struct Partial<'a> {
    /// `[rows]`.
    pub(super) max: &'a mut [f32],
    /// `[rows]`.
    pub(super) sum: &'a mut [f32],
    /// `[rows, stride]`, stride a whole number of vectors.
    pub(super) values: &'a mut [f32],
}

impl Partial<'_> {
    /// Elements from a row of values to the next.
    pub(super) fn stride(&self) -> usize {
        self.values.len() / self.max.len()
    }
}

/// Sizes of an op's scratch, in f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScratchShape {
    /// Score rows of a full tile.
    score_rows: usize,
    /// Query heads of a KV head: the score rows of a split row.
    group: usize,
    /// D.
    head_dim: usize,
    /// Keys of a unit.
    unit: usize,
}

/// A worker's own scratch.
pub(super) struct TileScratch<'a> {
    /// `[score rows, D]` scaled queries.
    pub(super) q: &'a mut [f32],
    /// `[score rows, U]` scores, then weights.
    pub(super) scores: &'a mut [f32],
    /// The unit at hand.
    pub(super) unit: Partial<'a>,
    /// All units so far.
    pub(super) state: Partial<'a>,
}

impl ScratchShape {
    /// For tiles of `shape` over heads of `head_dim`.
    pub(super) fn new(shape: &TileShape, head_dim: usize) -> Self {
        let TileShape { group, unit, .. } = *shape;
        ScratchShape { score_rows: shape.score_rows_max(), group, head_dim, unit }
    }

    /// f32 of a worker's own scratch.
    pub(super) fn own_len(&self) -> usize {
        self.score_rows * (self.head_dim + self.unit) + 2 * self.partial_len(self.score_rows)
    }

    /// f32 of the team's scratch: each cut between workers may split one row into all its units.
    pub(super) fn shared_len(&self, workers: usize, units_max: usize) -> usize {
        (workers - 1) * units_max * self.partial_len(self.group)
    }

    /// A worker's own scratch in memory.
    ///
    /// # Safety
    /// [`ScratchShape::own_len`] initialised f32 at `start` that nobody else uses for `'a`.
    pub(super) unsafe fn own<'a>(&self, start: *mut f32) -> TileScratch<'a> {
        let mut rest = start;
        // SAFETY: the parts lie one after another and add up to `own_len`.
        unsafe {
            TileScratch {
                q: take(&mut rest, self.score_rows * self.head_dim),
                scores: take(&mut rest, self.score_rows * self.unit),
                unit: self.partial(&mut rest, self.score_rows),
                state: self.partial(&mut rest, self.score_rows),
            }
        }
    }

    /// Unit number `unit` (of at most `units_max`) of the row that cut number `cut` (from 0) splits.
    ///
    /// # Safety
    /// [`ScratchShape::shared_len`] initialised f32 at `start`, and nobody else uses this unit's
    /// part for `'a`.
    pub(super) unsafe fn shared<'a>(
        &self,
        start: *mut f32,
        units_max: usize,
        cut: usize,
        unit: usize,
    ) -> Partial<'a> {
        assert!(unit < units_max);
        // SAFETY: cut < workers − 1 and unit < units_max, so the part lies within `shared_len`.
        unsafe {
            let mut rest = start.add((cut * units_max + unit) * self.partial_len(self.group));
            self.partial(&mut rest, self.group)
        }
    }

    /// Values of a row, padded to the widest vector.
    fn stride(&self) -> usize {
        self.head_dim.next_multiple_of(crate::cpu::buffer::LANES_MAX)
    }

    fn partial_len(&self, rows: usize) -> usize {
        rows * (self.stride() + 2)
    }

    /// # Safety
    /// As for [`take`], of `partial_len(rows)`.
    unsafe fn partial<'a>(&self, rest: &mut *mut f32, rows: usize) -> Partial<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            Partial {
                max: take(rest, rows),
                sum: take(rest, rows),
                values: take(rest, rows * self.stride()),
            }
        }
    }
}

/// The next `len` f32 at `rest`, which moves on.
///
/// # Safety
/// They are initialised, and nobody else uses them for `'a`.
unsafe fn take<'a>(rest: &mut *mut f32, len: usize) -> &'a mut [f32] {
    // SAFETY: the caller's promise.
    unsafe {
        let slice = std::slice::from_raw_parts_mut(*rest, len);
        *rest = rest.add(len);
        slice
    }
}
