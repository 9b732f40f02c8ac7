//! One unit of keys for one tile: scores, softmax, weighted values.
//!
//! Reads a block only if some row of the tile sees a key in it, since blocks that slid out of a
//! window are somebody else's. A key that a row does not see enters neither its sums nor its
//! maximum, so unwritten or foreign numbers beside visible ones do no harm.

use std::ops::Range;

use super::partial::Partial;
use super::product::Product;
use super::softmax::Softmax;
use super::tile::TileRows;
use crate::batch::NO_SLOT;
use crate::cpu::isa::Isa;
use crate::cpu::kv::{KvCache, Plane};

/// Tokens of a block whose scores are computed together: the widest vector.
const TOKENS: usize = 16;

/// A sequence's keys and values of one layer and KV head.
#[derive(Clone, Copy)]
pub(super) struct KvView<'a> {
    pub(super) kv: &'a KvCache,
    pub(super) layer: usize,
    pub(super) kv_head: usize,
    /// Block of each block_size tokens.
    pub(super) block_table: &'a [u32],
    pub(super) isa: Isa,
    /// `cap · tanh(s / cap)` before the softmax.
    pub(super) soft_cap: Option<f32>,
}

/// Some columns of a unit that lie in one block.
struct BlockPart {
    /// Columns of the unit.
    columns: Range<usize>,
    /// Place of the first one in the block.
    offset: usize,
    /// The block.
    block: usize,
}

impl KvView<'_> {
    /// Attends a tile's rows to one unit: scaled queries `q` `[score rows, D]` in, `partial` out,
    /// `scores` `[score rows, U]` scratch.
    pub(super) fn attend(
        &self,
        rows: &TileRows,
        q: &[f32],
        scores: &mut [f32],
        partial: &mut Partial<'_>,
    ) {
        self.score(rows, q, scores);
        self.isa.dispatch(Softmax {
            scores: &mut *scores,
            stride: rows.unit(),
            rows: *rows,
            soft_cap: self.soft_cap,
            max: &mut *partial.max,
            sum: &mut *partial.sum,
        });
        self.add_values(rows, scores, partial);
    }

    /// `scores[r][column] = q[r] · k[column]`, for whole groups of tokens around the visible ones.
    fn score(&self, rows: &TileRows, q: &[f32], scores: &mut [f32]) {
        let head_dim = self.kv.spec().head_dim;
        assert!(q.len() >= rows.num_score_rows() * head_dim);
        assert!(scores.len() >= rows.num_score_rows() * rows.unit());
        let seen = rows.union();
        let groups = seen.start / TOKENS * TOKENS..seen.end.next_multiple_of(TOKENS);
        for part in self.blocks(rows, groups) {
            let keys = self.kv.head_ptr(self.layer, Plane::Keys, part.block, self.kv_head);
            let product = Product {
                a: q.as_ptr(),
                a_stride: head_dim,
                b: keys.wrapping_add(part.offset * self.kv.spec().dtype.bytes()),
                b_stride: self.kv.block_size(),
                dtype: self.kv.spec().dtype,
                c: scores.as_mut_ptr().wrapping_add(part.columns.start),
                c_stride: rows.unit(),
                rows: rows.num_score_rows(),
                depth: head_dim,
                cols: part.columns.len(),
                accumulate: false,
            };
            // SAFETY: q and scores hold the score rows (asserted above); K of a (block, head) is
            // [D][block_size] and the part's columns lie in it. No worker writes the cache here.
            unsafe { product.run(self.isa) };
        }
    }

    /// `values[r] = Σ weight[r][column] · v[column]`, columns ascending for each row.
    fn add_values(&self, rows: &TileRows, weights: &[f32], partial: &mut Partial<'_>) {
        let used = rows.num_score_rows() * partial.stride();
        partial.values[..used].fill(0.0);
        let common = rows.common();
        for part in self.blocks(rows, rows.union()) {
            let shared = intersect(&part.columns, &common);
            // What not every row sees is each row's own: before the shared columns, and after.
            for row in 0..rows.num_rows() {
                let before = match shared.is_empty() {
                    true => rows.visible_to(row),
                    false => rows.visible_to(row).start..shared.start,
                };
                let columns = intersect(&part.columns, &before);
                self.add_columns(rows, row..row + 1, &part, columns, (weights, partial));
            }
            if shared.is_empty() {
                continue;
            }
            let all = 0..rows.num_rows();
            self.add_columns(rows, all.clone(), &part, shared.clone(), (weights, partial));
            for row in all {
                let after = shared.end..rows.visible_to(row).end;
                let columns = intersect(&part.columns, &after);
                self.add_columns(rows, row..row + 1, &part, columns, (weights, partial));
            }
        }
    }

    /// Adds `columns` of a block to the values of some rows.
    fn add_columns(
        &self,
        rows: &TileRows,
        which: Range<usize>,
        part: &BlockPart,
        columns: Range<usize>,
        (weights, partial): (&[f32], &mut Partial<'_>),
    ) {
        if columns.is_empty() {
            return;
        }
        let spec = self.kv.spec();
        let stride = partial.stride();
        let score_rows = which.start * rows.group()..which.end * rows.group();
        assert!(weights.len() >= score_rows.end * rows.unit());
        assert!(partial.values.len() >= score_rows.end * stride && stride >= spec.head_dim);
        let token = part.offset + columns.start - part.columns.start;
        let values = self.kv.head_ptr(self.layer, Plane::Values, part.block, self.kv_head);
        let weights_at = score_rows.start * rows.unit() + columns.start;
        let product = Product {
            a: weights.as_ptr().wrapping_add(weights_at),
            a_stride: rows.unit(),
            b: values.wrapping_add(token * spec.head_dim * spec.dtype.bytes()),
            b_stride: spec.head_dim,
            dtype: spec.dtype,
            c: partial.values.as_mut_ptr().wrapping_add(score_rows.start * stride),
            c_stride: stride,
            rows: score_rows.len(),
            depth: columns.len(),
            cols: spec.head_dim,
            accumulate: true,
        };
        // SAFETY: weights and values hold the score rows (asserted above); V of a (block, head) is
        // [block_size][D] and the columns lie in the block. No worker writes the cache here.
        unsafe { product.run(self.isa) };
    }

    /// Cuts columns of a unit into blocks, ascending. Every one of them must be a block that some
    /// row sees.
    fn blocks(&self, rows: &TileRows, columns: Range<usize>) -> impl Iterator<Item = BlockPart> {
        let block_size = self.kv.block_size();
        let unit_start = rows.unit_start();
        let first = columns.start / block_size;
        (first..columns.end.div_ceil(block_size)).map(move |index| {
            let start = columns.start.max(index * block_size);
            let end = columns.end.min((index + 1) * block_size);
            let block = self.block_table[unit_start / block_size + index];
            assert!(block != NO_SLOT, "a visible key lies in a block that was given back");
            BlockPart {
                columns: start..end,
                offset: start - index * block_size,
                block: block as usize,
            }
        })
    }
}

fn intersect(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
