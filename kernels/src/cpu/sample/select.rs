//! Which tokens may be drawn: min-p, then top-k, then top-p, by threshold instead of a sort.
//!
//! The order is that of vLLM's sampler (temperature, min-p, top-k, top-p), each on what the one
//! before left, renormalised. Tokens rank by exponent, ties by lower token. A histogram over the
//! exponents finds the bin in which a limit falls, and only that bin is sorted.

use super::passes;
use crate::cpu::simd::Simd;
use crate::sampling::SamplerParams;

/// Bins for each unit of the exponent. Exponents of tokens with a weight lie in −87..=0.
const BINS_PER_UNIT: f32 = 32.0;
const NUM_BINS: usize = 88 * BINS_PER_UNIT as usize;

/// top_p is an f32 and weights carry rounding, so a sum this close to it has reached it.
const TOP_P_SLACK: f64 = 1e-6;

/// Scratch for one row's selection, allocated at start.
pub(super) struct Selection {
    /// Tokens in each bin, and the sum of their weights: as many bins as are in use.
    bins: Vec<Bin>,
    /// Rank keys of one bin's tokens.
    keys: Vec<u64>,
}

#[derive(Clone, Copy, Default)]
struct Bin {
    num_tokens: usize,
    weight: f64,
}

/// The last token that is kept: its bin, and its place among the sorted keys of that bin.
struct Limit {
    bin: usize,
    key: u64,
}

impl Selection {
    /// For a vocabulary of `vocab` tokens.
    pub(super) fn new(vocab: usize) -> Selection {
        Selection { bins: Vec::with_capacity(NUM_BINS), keys: Vec::with_capacity(vocab) }
    }

    /// Zeroes the weights of the tokens that may not be drawn. At least one stays.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(
        &mut self,
        params: &SamplerParams,
        exponents: &[f32],
        weights: &mut [f32],
    ) {
        if params.min_p > 0.0 {
            keep_min_p(params.min_p, exponents, weights);
        }
        if params.top_k == 0 && params.top_p >= 1.0 {
            return;
        }
        if let Some(limit) = self.limit(params, exponents, weights) {
            passes::drop_below::<S>(exponents, weights, exponent_of(limit.key));
            // Equals of the last kept token that rank after it.
            for &key in self.keys.iter().filter(|&&key| key > limit.key) {
                if let Some(weight) = weights.get_mut(token_of(key)) {
                    *weight = 0.0;
                }
            }
        }
    }

    /// The last token that top-k and top-p keep; `None` if they keep all. Leaves the keys of its
    /// bin in `keys`.
    fn limit(
        &mut self,
        params: &SamplerParams,
        exponents: &[f32],
        weights: &[f32],
    ) -> Option<Limit> {
        let mut total = self.fill_bins(exponents, weights);
        let by_count = match params.top_k {
            0 => None,
            top_k => self.limit_by_count(top_k as usize, exponents, weights),
        };
        if let Some(limit) = &by_count {
            self.cut(limit, weights);
            total = self.bins.iter().map(|bin| bin.weight).sum();
        }
        if params.top_p >= 1.0 {
            return by_count;
        }
        let target = total * f64::from(params.top_p) * (1.0 - TOP_P_SLACK);
        self.limit_by_weight(target, by_count, exponents, weights)
    }

    fn fill_bins(&mut self, exponents: &[f32], weights: &[f32]) -> f64 {
        self.bins.clear();
        for (&exponent, &weight) in exponents.iter().zip(weights) {
            if weight > 0.0 {
                let bin = bin_of(exponent);
                if bin >= self.bins.len() {
                    self.bins.resize(bin + 1, Bin::default());
                }
                self.bins[bin].num_tokens += 1;
                self.bins[bin].weight += f64::from(weight);
            }
        }
        self.bins.iter().map(|bin| bin.weight).sum()
    }

    /// The token that ranks `top_k`-th; `None` if there are not more.
    fn limit_by_count(
        &mut self,
        top_k: usize,
        exponents: &[f32],
        weights: &[f32],
    ) -> Option<Limit> {
        let mut before = 0;
        let bin = self.bins.iter().position(|bin| {
            before += bin.num_tokens;
            before >= top_k
        })?;
        let before = before - self.bins[bin].num_tokens;
        self.sort_bin(bin, exponents, weights);
        let key = self.keys.get(top_k - before - 1).copied()?;
        Some(Limit { bin, key })
    }

    /// Takes the tokens after `limit` out of the bins. `keys` hold those of its bin.
    fn cut(&mut self, limit: &Limit, weights: &[f32]) {
        let mut kept = Bin::default();
        for &key in self.keys.iter().take_while(|&&key| key <= limit.key) {
            kept.num_tokens += 1;
            kept.weight += f64::from(weights[token_of(key)]);
        }
        self.bins.truncate(limit.bin);
        self.bins.push(kept);
    }

    /// The token with which the weight reaches `target`, at most `outer`.
    fn limit_by_weight(
        &mut self,
        target: f64,
        outer: Option<Limit>,
        exponents: &[f32],
        weights: &[f32],
    ) -> Option<Limit> {
        let mut sum = 0.0;
        let reached = self.bins.iter().position(|bin| {
            sum += bin.weight;
            bin.num_tokens > 0 && sum >= target
        });
        // Rounding of the sum may leave it short of the target: then nothing is cut.
        let Some(bin) = reached else { return outer };
        sum = self.bins[..bin].iter().map(|bin| bin.weight).sum();
        self.sort_bin(bin, exponents, weights);
        for &key in &self.keys {
            sum += f64::from(weights[token_of(key)]);
            let is_outer = outer.as_ref().is_some_and(|outer| outer.key == key);
            if sum >= target || is_outer {
                return Some(Limit { bin, key });
            }
        }
        self.keys.last().map(|&key| Limit { bin, key })
    }

    /// Collects the rank keys of a bin's tokens, best first.
    fn sort_bin(&mut self, bin: usize, exponents: &[f32], weights: &[f32]) {
        self.keys.clear();
        for (token, (&exponent, &weight)) in exponents.iter().zip(weights).enumerate() {
            if weight > 0.0 && bin_of(exponent) == bin {
                self.keys.push(key_of(exponent, token));
            }
        }
        self.keys.sort_unstable();
    }
}

/// Zeroes weights under `min_p` of the largest, which is 1 and stays whatever its rounding.
fn keep_min_p(min_p: f32, exponents: &[f32], weights: &mut [f32]) {
    for (weight, &exponent) in weights.iter_mut().zip(exponents) {
        if *weight < min_p && exponent < 0.0 {
            *weight = 0.0;
        }
    }
}

/// Larger exponents in lower bins.
fn bin_of(exponent: f32) -> usize {
    ((-exponent * BINS_PER_UNIT) as usize).min(NUM_BINS - 1)
}

/// Ascending keys are descending exponents (≤ 0), then ascending tokens.
fn key_of(exponent: f32, token: usize) -> u64 {
    // `0 − x` and not `−x`: the best exponent is +0 and must not become −0, whose bits are large.
    u64::from((0.0 - exponent).to_bits()) << 32 | token as u64
}

fn exponent_of(key: u64) -> f32 {
    0.0 - f32::from_bits((key >> 32) as u32)
}

fn token_of(key: u64) -> usize {
    (key & 0xffff_ffff) as usize
}

#[cfg(test)]
mod tests;
