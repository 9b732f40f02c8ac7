//! Passes over the logits of a row, in vectors: largest, exponentials, sums, ranks.
//!
//! Each pass cuts the vocabulary into chunks at absolute multiples of [`CHUNK`] and has one order
//! within a chunk, so a result depends on the logits and the instruction set alone. All are inlined
//! into the kernel of a row: see [`crate::cpu::isa::Kernel`].

use super::adjust::clean;
use crate::cpu::math::exp;
use crate::cpu::simd::Simd;

/// Tokens whose sums and largest values are kept together. Scratch rows are padded to it.
pub(super) const CHUNK: usize = 256;

/// Lanes without NaN and +∞, as [`clean`].
#[inline(always)]
fn clean_lanes<S: Simd>(lanes: S::F32) -> S::F32 {
    S::min(S::max(lanes, S::splat(f32::NEG_INFINITY)), S::splat(f32::MAX))
}

/// Applies `f` to the cleaned whole vectors of `chunk`; gives how many elements they were.
#[inline(always)]
fn for_each_vector<S: Simd>(chunk: &[f32], mut f: impl FnMut(S::F32)) -> usize {
    let whole = chunk.len() / S::LANES * S::LANES;
    for start in (0..whole).step_by(S::LANES) {
        // SAFETY: start + LANES <= whole <= len.
        f(clean_lanes::<S>(unsafe { S::load(chunk.as_ptr().add(start)) }));
    }
    whole
}

/// The largest of a chunk; −∞ if all are impossible.
#[inline(always)]
fn chunk_largest<S: Simd>(chunk: &[f32]) -> f32 {
    let mut best = [S::splat(f32::NEG_INFINITY); 4];
    let mut turn = 0;
    let whole = for_each_vector::<S>(chunk, |lanes| {
        best[turn % 4] = S::max(best[turn % 4], lanes);
        turn += 1;
    });
    let best = S::max(S::max(best[0], best[1]), S::max(best[2], best[3]));
    chunk[whole..].iter().fold(S::largest(best), |best, &logit| best.max(clean(logit)))
}

/// Index and value of the largest logit, the lowest index of equals; `None` if all are impossible.
#[inline(always)]
pub(super) fn argmax<S: Simd>(logits: &[f32]) -> Option<(usize, f32)> {
    let mut best = f32::NEG_INFINITY;
    let mut best_start = None;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let largest = chunk_largest::<S>(chunk);
        if largest > best {
            best = largest;
            best_start = Some(index * CHUNK);
        }
    }
    let start = best_start?;
    let offset = logits[start..].iter().position(|&logit| clean(logit) == best)?;
    Some((start + offset, best))
}

/// `exponents = (exponents − largest) · scale` and `weights = e^exponents`.
///
/// Both slices are padded to whole chunks. Impossible tokens hold −∞ and weigh exactly nothing, as
/// do those so unlikely that their weight would be denormal.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(
    exponents: &mut [f32],
    weights: &mut [f32],
    largest: f32,
    scale: f32,
) {
    assert_eq!(exponents.len(), weights.len());
    assert_eq!(exponents.len() % CHUNK, 0);
    for start in (0..exponents.len()).step_by(S::LANES) {
        // SAFETY: both have whole vectors, CHUNK being a multiple of LANES.
        unsafe {
            let logit = S::load(exponents.as_ptr().add(start));
            let exponent = S::mul(S::sub(logit, S::splat(largest)), S::splat(scale));
            S::store(exponents.as_mut_ptr().add(start), exponent);
            S::store(weights.as_mut_ptr().add(start), exp::<S>(exponent));
        }
    }
}

/// Zeroes the weights of tokens whose exponent is below `least`.
#[inline(always)]
pub(super) fn drop_below<S: Simd>(exponents: &[f32], weights: &mut [f32], least: f32) {
    assert_eq!(exponents.len(), weights.len());
    assert_eq!(exponents.len() % CHUNK, 0);
    for start in (0..exponents.len()).step_by(S::LANES) {
        // SAFETY: both have whole vectors, CHUNK being a multiple of LANES.
        unsafe {
            let exponent = S::load(exponents.as_ptr().add(start));
            let kept = S::load(weights.as_ptr().add(start));
            let kept = S::select_less(exponent, S::splat(least), S::splat(0.0), kept);
            S::store(weights.as_mut_ptr().add(start), kept);
        }
    }
}

/// The sum of all weights; padded to whole chunks.
#[inline(always)]
pub(super) fn total<S: Simd>(weights: &[f32]) -> f64 {
    // A loop and not `map`, whose closure would be compiled without the kernel's features.
    let mut total = 0.0;
    for chunk in weights.chunks_exact(CHUNK) {
        total += f64::from(chunk_sum::<S>(chunk));
    }
    total
}

/// The sum of each chunk of `weights`, and the sum of the sums.
#[inline(always)]
pub(super) fn chunk_sums<S: Simd>(weights: &[f32], sums: &mut [f64]) -> f64 {
    let mut total = 0.0;
    for (chunk, sum) in weights.chunks_exact(CHUNK).zip(sums) {
        *sum = f64::from(chunk_sum::<S>(chunk));
        total += *sum;
    }
    total
}

/// The sum of a whole chunk.
#[inline(always)]
fn chunk_sum<S: Simd>(chunk: &[f32]) -> f32 {
    assert_eq!(chunk.len(), CHUNK);
    let mut lanes = S::splat(0.0);
    for start in (0..CHUNK).step_by(S::LANES) {
        // SAFETY: a whole chunk, CHUNK being a multiple of LANES.
        lanes = S::add(lanes, unsafe { S::load(chunk.as_ptr().add(start)) });
    }
    S::sum(lanes)
}

/// `ln Σ e^logit` of raw logits whose largest is `largest` (finite).
#[inline(always)]
pub(super) fn log_sum<S: Simd>(logits: &[f32], largest: f32) -> f64 {
    let mut total = 0.0;
    for chunk in logits.chunks(CHUNK) {
        let mut lanes = S::splat(0.0);
        let whole = for_each_vector::<S>(chunk, |logit| {
            lanes = S::add(lanes, exp::<S>(S::sub(logit, S::splat(largest))));
        });
        let mut tail = [f32::NEG_INFINITY; 16];
        for (lane, &logit) in tail.iter_mut().zip(&chunk[whole..]) {
            *lane = clean(logit);
        }
        // SAFETY: 16 elements are at least LANES.
        let tail = unsafe { S::load(tail.as_ptr()) };
        lanes = S::add(lanes, exp::<S>(S::sub(tail, S::splat(largest))));
        total += f64::from(S::sum(lanes));
    }
    f64::from(largest) + total.ln()
}

/// 1 for the most likely token; equals rank by lower token.
#[inline(always)]
pub(super) fn rank<S: Simd>(logits: &[f32], token: usize) -> u32 {
    let value = clean(logits[token]);
    let better =
        |logit: S::F32| S::select_less(S::splat(value), logit, S::splat(1.0), S::splat(0.0));
    let no_worse =
        |logit: S::F32| S::select_less(logit, S::splat(value), S::splat(0.0), S::splat(1.0));
    let before = count::<S>(&logits[..token], no_worse, |logit| logit >= value);
    let after = count::<S>(&logits[token + 1..], better, |logit| logit > value);
    1 + before + after
}

/// How many logits count: `lanes` gives 1 or 0 a lane, `one` says it of the tail.
#[inline(always)]
fn count<S: Simd>(
    logits: &[f32],
    lanes: impl Fn(S::F32) -> S::F32,
    one: impl Fn(f32) -> bool,
) -> u32 {
    let mut total = 0;
    for chunk in logits.chunks(CHUNK) {
        let mut sum = S::splat(0.0);
        let whole = for_each_vector::<S>(chunk, |logit| sum = S::add(sum, lanes(logit)));
        total += S::sum(sum) as u32;
        total += chunk[whole..].iter().filter(|&&logit| one(clean(logit))).count() as u32;
    }
    total
}

/// Fills `top` with `(token, logit)` of the most likely tokens, ties by lower token.
#[inline(always)]
pub(super) fn most_likely<S: Simd>(logits: &[f32], top: &mut [(u32, f32)]) {
    let Some(last) = top.len().checked_sub(1) else { return };
    top.fill((u32::MAX, f32::NEG_INFINITY));
    let mut filled = 0;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        if filled > last && chunk_largest::<S>(chunk) <= top[last].1 {
            continue;
        }
        for (offset, &logit) in chunk.iter().enumerate() {
            let logit = clean(logit);
            if filled > last && logit <= top[last].1 {
                continue;
            }
            let place = top[..filled].iter().position(|&(_, other)| logit > other);
            let place = place.unwrap_or(filled);
            filled = (filled + 1).min(last + 1);
            top[place..filled].rotate_right(1);
            top[place] = ((index * CHUNK + offset) as u32, logit);
        }
    }
}
