//! Softmax of one unit's scores, and the merge of units.
//!
//! A token's lane is its place in the unit modulo the lanes, and lanes add up in ascending order of
//! tokens. A masked token's score is −∞, whose weight is exactly +0: adding it changes no bit, so
//! it does not matter whether a token was masked or never there.

use super::partial::Partial;
use super::tile::TileRows;
use crate::cpu::isa::Kernel;
use crate::cpu::math::{exp, soft_cap};
use crate::cpu::simd::Simd;

/// Turns the scores of a tile's unit into weights; notes each row's largest score and weight sum.
pub(super) struct Softmax<'a> {
    /// `[rows, stride]`; columns are the unit's tokens. Weights of masked tokens become 0.
    pub(super) scores: &'a mut [f32],
    /// The unit's tokens, a multiple of the lanes.
    pub(super) stride: usize,
    /// Which columns each row sees.
    pub(super) rows: TileRows,
    /// `cap · tanh(s / cap)` before the softmax.
    pub(super) soft_cap: Option<f32>,
    /// `[rows]`, written for rows that see any column.
    pub(super) max: &'a mut [f32],
    /// `[rows]`, written for rows that see any column.
    pub(super) sum: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for row in 0..self.rows.num_score_rows() {
            let visible = self.rows.visible(row);
            if visible.is_empty() {
                continue;
            }
            let scores = &mut self.scores[row * self.stride..(row + 1) * self.stride];
            let first = visible.start / S::LANES * S::LANES;
            let last = visible.end.next_multiple_of(S::LANES);
            let seen = &mut scores[first..last];
            if let Some(cap) = self.soft_cap {
                for_each_vector::<S>(seen, |lanes| soft_cap::<S>(lanes, cap));
            }
            seen[..visible.start - first].fill(f32::NEG_INFINITY);
            seen[visible.end - first..].fill(f32::NEG_INFINITY);
            (self.max[row], self.sum[row]) = row_softmax::<S>(seen);
        }
    }
}

/// Replaces scores by `e^(score − max)`; gives the maximum and the sum.
#[inline(always)]
fn row_softmax<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    let mut max = S::splat(f32::NEG_INFINITY);
    for_each_vector::<S>(scores, |lanes| {
        max = S::max(lanes, max);
        lanes
    });
    let max = S::largest(max);
    let mut sum = S::splat(0.0);
    for_each_vector::<S>(scores, |lanes| {
        let weight = exp::<S>(S::sub(lanes, S::splat(max)));
        sum = S::add(sum, weight);
        weight
    });
    (max, S::sum(sum))
}

/// Replaces each vector of `values` (a whole number of them) by `f` of it.
#[inline(always)]
fn for_each_vector<S: Simd>(values: &mut [f32], mut f: impl FnMut(S::F32) -> S::F32) {
    assert_eq!(values.len() % S::LANES, 0);
    for start in (0..values.len()).step_by(S::LANES) {
        // SAFETY: start + LANES <= len.
        unsafe {
            let at = values.as_mut_ptr().add(start);
            S::store(at, f(S::load(at)));
        }
    }
}

/// Adds a unit to the state of all units before it.
pub(super) struct Merge<'a, 'b> {
    pub(super) state: &'a mut Partial<'b>,
    pub(super) unit: &'a Partial<'b>,
    /// Which rows see the unit; others keep their state.
    pub(super) rows: TileRows,
}

impl Kernel for Merge<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Merge { state, unit, rows } = self;
        let stride = state.stride();
        for row in (0..rows.num_score_rows()).filter(|&row| !rows.visible(row).is_empty()) {
            let place = row * stride..(row + 1) * stride;
            if rows.is_first_unit(row) {
                state.max[row] = unit.max[row];
                state.sum[row] = unit.sum[row];
                state.values[place.clone()].copy_from_slice(&unit.values[place]);
                continue;
            }
            let max = if unit.max[row] > state.max[row] { unit.max[row] } else { state.max[row] };
            let keep = exp_of::<S>(state.max[row] - max);
            let gain = exp_of::<S>(unit.max[row] - max);
            state.max[row] = max;
            state.sum[row] = state.sum[row] * keep + unit.sum[row] * gain;
            let gained = &unit.values[place.clone()];
            let mut at = 0;
            for_each_vector::<S>(&mut state.values[place], |kept| {
                // SAFETY: both rows are `stride` long, a whole number of vectors.
                let lanes = unsafe { S::load(gained.as_ptr().add(at)) };
                at += S::LANES;
                S::fma(lanes, S::splat(gain), S::mul(kept, S::splat(keep)))
            });
        }
    }
}

/// Joins the sinks and divides by the sum: the state's values become the output.
pub(super) struct Finish<'a, 'b> {
    pub(super) state: &'a mut Partial<'b>,
    pub(super) num_score_rows: usize,
    /// Logit of each query head of the tile's KV head; score row r has head `r % len`.
    pub(super) sinks: Option<&'a [f32]>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Finish { state, num_score_rows, sinks } = self;
        let stride = state.stride();
        for row in 0..num_score_rows {
            let mut keep = 1.0;
            let mut sum = state.sum[row];
            if let Some(sinks) = sinks {
                let sink = sinks[row % sinks.len()];
                let max = if sink > state.max[row] { sink } else { state.max[row] };
                keep = exp_of::<S>(state.max[row] - max);
                sum = sum * keep + exp_of::<S>(sink - max);
            }
            let factor = S::splat(keep / sum);
            for_each_vector::<S>(&mut state.values[row * stride..(row + 1) * stride], |lanes| {
                S::mul(lanes, factor)
            });
        }
    }
}

/// `eˣ` of one number, by the same instructions as of a vector.
#[inline(always)]
fn exp_of<S: Simd>(x: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    // SAFETY: 16 elements are at least LANES.
    unsafe { S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(x))) };
    lanes[0]
}
