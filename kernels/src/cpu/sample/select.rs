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

/// Limits are first looked for among tokens above e⁻¹⁰ of the best: mostly few, and enough.
const LIKELY: f32 = -10.0;

/// Below every exponent of a token with a weight.
const ALL: f32 = f32::NEG_INFINITY;

/// Tokens that are passed over together when none of them is looked for.
const RUN: usize = 32;

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

    /// Bytes of such scratch.
    pub(super) fn bytes(vocab: usize) -> usize {
        NUM_BINS * size_of::<Bin>() + vocab * size_of::<u64>()
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
        let total = passes::total::<S>(weights);
        let limit = match self.limit(params, total, exponents, weights, LIKELY) {
            Ok(limit) => limit,
            Err(TooFewTokens) => {
                self.limit(params, total, exponents, weights, ALL).unwrap_or_default()
            }
        };
        if let Some(limit) = limit {
            passes::drop_below::<S>(exponents, weights, exponent_of(limit.key));
            // Equals of the last kept token that rank after it.
            for &key in self.keys.iter().filter(|&&key| key > limit.key) {
                if let Some(weight) = weights.get_mut(token_of(key)) {
                    *weight = 0.0;
                }
            }
        }
    }

    /// The last token that top-k and top-p keep, if it lies among those above `floor`; `None` if
    /// they keep all. Leaves the keys of its bin in `keys`.
    fn limit(
        &mut self,
        params: &SamplerParams,
        mut total: f64,
        exponents: &[f32],
        weights: &[f32],
        floor: f32,
    ) -> Result<Option<Limit>, TooFewTokens> {
        self.fill_bins(exponents, weights, floor);
        let mut by_count = None;
        if params.top_k > 0 {
            by_count = self.limit_by_count(params.top_k as usize, exponents, weights);
            match &by_count {
                Some(limit) => total = self.cut(limit, weights),
                None if floor > ALL => return Err(TooFewTokens),
                None => {}
            }
        }
        if params.top_p >= 1.0 {
            return Ok(by_count);
        }
        let target = total * f64::from(params.top_p) * (1.0 - TOP_P_SLACK);
        match self.limit_by_weight(target, &by_count, exponents, weights) {
            None if floor > ALL => Err(TooFewTokens),
            limit => Ok(limit.or(by_count)),
        }
    }

    fn fill_bins(&mut self, exponents: &[f32], weights: &[f32], floor: f32) {
        self.bins.clear();
        for (exponents, weights) in exponents.chunks(RUN).zip(weights.chunks(RUN)) {
            if !any_within(exponents, floor, 0.0) {
                continue;
            }
            // All indices first: lanes convert together.
            let mut bins = [0; RUN];
            for (bin, &exponent) in bins.iter_mut().zip(exponents) {
                *bin = bin_of(exponent);
            }
            let deepest = bins.iter().fold(0, |deepest, &bin| bin.max(deepest)) as usize;
            if deepest >= self.bins.len() {
                self.bins.resize(deepest + 1, Bin::default());
            }
            for ((&bin, &weight), &exponent) in bins.iter().zip(weights).zip(exponents) {
                if weight > 0.0 && exponent > floor {
                    let bin = &mut self.bins[bin as usize];
                    bin.num_tokens += 1;
                    bin.weight += f64::from(weight);
                }
            }
        }
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

    /// Takes the tokens after `limit` out of the bins; gives the weight that is left. `keys` hold
    /// those of its bin.
    fn cut(&mut self, limit: &Limit, weights: &[f32]) -> f64 {
        let mut kept = Bin::default();
        for &key in self.keys.iter().take_while(|&&key| key <= limit.key) {
            kept.num_tokens += 1;
            kept.weight += f64::from(weights[token_of(key)]);
        }
        self.bins.truncate(limit.bin);
        self.bins.push(kept);
        self.bins.iter().map(|bin| bin.weight).sum()
    }

    /// The token with which the weight reaches `target`, at most `outer`; `None` if the bins do not
    /// hold as much.
    fn limit_by_weight(
        &mut self,
        target: f64,
        outer: &Option<Limit>,
        exponents: &[f32],
        weights: &[f32],
    ) -> Option<Limit> {
        let mut sum = 0.0;
        let bin = self.bins.iter().position(|bin| {
            sum += bin.weight;
            bin.num_tokens > 0 && sum >= target
        })?;
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
        let (low, high) = (-((bin + 1) as f32) / BINS_PER_UNIT, -(bin as f32) / BINS_PER_UNIT);
        for (index, exponents) in exponents.chunks(RUN).enumerate() {
            if !any_within(exponents, low, high) {
                continue;
            }
            for (offset, &exponent) in exponents.iter().enumerate() {
                let token = index * RUN + offset;
                if exponent > low && exponent <= high && weights[token] > 0.0 {
                    self.keys.push(key_of(exponent, token));
                }
            }
        }
        self.keys.sort_unstable();
    }
}

/// The limit lies below the floor of the tokens that were looked at.
#[derive(Debug)]
struct TooFewTokens;

/// Whether an exponent lies in `(low, high]`. Without a branch, so that lanes compare together.
fn any_within(exponents: &[f32], low: f32, high: f32) -> bool {
    exponents.iter().fold(false, |any, &exponent| any | ((exponent > low) & (exponent <= high)))
}

/// Zeroes weights under `min_p` of the largest, which is 1 and stays whatever its rounding.
fn keep_min_p(min_p: f32, exponents: &[f32], weights: &mut [f32]) {
    for (weight, &exponent) in weights.iter_mut().zip(exponents) {
        if *weight < min_p && exponent < 0.0 {
            *weight = 0.0;
        }
    }
}

/// Larger exponents in lower bins: bin b holds `(−(b + 1), −b]` in units of a bin, exactly, since
/// scaling by a power of two does not round. Tokens without a weight share the last bin.
fn bin_of(exponent: f32) -> u32 {
    (-exponent * BINS_PER_UNIT).min(NUM_BINS as f32 - 1.0) as i32 as u32
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
