//! One unit of keys for one tile: scores, softmax, weighted values.
//!
//! Reads a block only if some row of the tile sees a key in it, since blocks that slid out of a
//! window are somebody else's. A key that a row does not see enters neither its sums nor its
//! maximum, so unwritten or foreign numbers beside visible ones do no harm. Scales of an fp8 cache
//! multiply scores and weights: exactly, as they are powers of two.

use std::ops::Range;

use super::partial::Partial;
use super::product::Product;
use super::softmax::Softmax;
use super::tile::TileRows;
use crate::batch::NO_SLOT;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::kv::{KvCache, Plane};
use crate::cpu::simd::Simd;
use crate::device::KvSpec;
use crate::kv_format::scale_value;

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
        let KvSpec { head_dim, format, .. } = self.kv.spec();
        assert!(q.len() >= rows.num_score_rows() * head_dim);
        assert!(scores.len() >= rows.num_score_rows() * rows.unit());
        let seen = rows.union();
        let groups = seen.start / TOKENS * TOKENS..seen.end.next_multiple_of(TOKENS);
        for part in self.blocks(rows, groups) {
            let keys = self.kv.head_ptr(self.layer, Plane::Keys, part.block, self.kv_head);
            let product = Product {
                a: q.as_ptr(),
                a_stride: head_dim,
                b: keys.wrapping_add(part.offset * format.element_bytes()),
                b_stride: self.kv.block_size(),
                format,
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
            self.scale(Plane::Keys, rows, &part, scores);
        }
    }

    /// `values[r] = Σ weight[r][column] · v[column]`, columns ascending for each row.
    fn add_values(&self, rows: &TileRows, weights: &mut [f32], partial: &mut Partial<'_>) {
        let used = rows.num_score_rows() * partial.stride();
        partial.values[..used].fill(0.0);
        let common = rows.common();
        for part in self.blocks(rows, rows.union()) {
            self.scale(Plane::Values, rows, &part, weights);
            let weights = &*weights;
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
            b: values.wrapping_add(token * spec.head_dim * spec.format.element_bytes()),
            b_stride: spec.head_dim,
            format: spec.format,
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

    /// Multiplies a block's columns of all rows by the scales of their tokens' keys or values, if the
    /// cache has any. What no row sees becomes anything, and is not looked at.
    fn scale(&self, plane: Plane, rows: &TileRows, part: &BlockPart, columns: &mut [f32]) {
        let Some(scales) = self.kv.scales_ptr(self.layer, plane, part.block, self.kv_head) else {
            return;
        };
        assert!(part.offset + part.columns.len() <= self.kv.block_size());
        // SAFETY: a (block, head) has a scale for each of its tokens (asserted above), and no worker
        // writes the cache here.
        let scales =
            unsafe { std::slice::from_raw_parts(scales.add(part.offset), part.columns.len()) };
        self.isa.dispatch(ScaleColumns {
            values: &mut columns[..rows.num_score_rows() * rows.unit()],
            stride: rows.unit(),
            first: part.columns.start,
            scales,
        });
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

/// Multiplies some columns of all rows by scales, and by what [`Simd::load_fp8`] leaves out of codes.
struct ScaleColumns<'a> {
    /// `[rows, stride]`.
    values: &'a mut [f32],
    stride: usize,
    /// The first column.
    first: usize,
    /// Of the columns from there.
    scales: &'a [u8],
}

impl Kernel for ScaleColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut factors = [0.0; TOKENS];
        for (index, scales) in self.scales.chunks(TOKENS).enumerate() {
            for (factor, &scale) in factors.iter_mut().zip(scales) {
                *factor = scale_value(scale) * 256.0;
            }
            let at = self.first + index * TOKENS;
            for row in self.values.chunks_exact_mut(self.stride) {
                for (value, factor) in row[at..at + scales.len()].iter_mut().zip(&factors) {
                    *value *= factor;
                }
            }
        }
    }
}

fn intersect(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
