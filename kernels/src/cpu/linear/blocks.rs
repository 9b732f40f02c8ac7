//! How a step of two blocks of 32 meets quantized rows: dots of bytes in integers, which are exact and
//! so have no order, then one multiply-add a block: `sum · (weight's scale · row's scale)`.
//!
//! A quantized row's step is twenty 32-bit words:
//! ```text
//! [2 blocks][8]  quads of signed bytes, k ascending
//! [2 blocks]     scales, f32
//! [2 blocks]     where integer sums start: −offset · Σ bytes, for what weights are stored above theirs
//! ```

use crate::cpu::linear::format::{Format, column};
use crate::cpu::simd::Simd;
use crate::cpu::weight::{
    PANEL, Q4_BLOCK_BYTES, Q4_STEP_BYTES, Q8_BLOCK_BYTES, Q8_STEP_BYTES, STEP_BLOCKS, STEP_K,
};
use crate::weight_format::BLOCK;

/// Quads of a block.
pub(super) const QUADS: usize = BLOCK / 4;
/// Where a step's scales lie in a row, in words.
pub(super) const SCALES: usize = STEP_BLOCKS * QUADS;
/// Where a step's starts lie in a row, in words.
pub(super) const STARTS: usize = SCALES + STEP_BLOCKS;
/// Words of a step of a row.
pub(super) const STEP_WORDS: usize = STARTS + STEP_BLOCKS;

/// 8-bit weights, stored 128 above their value.
pub(crate) struct Q8;

/// 4-bit weights, stored 8 above their value.
pub(crate) struct Q4;

impl Format for Q8 {
    const K: usize = STEP_K;
    const PAIRS: bool = false;
    const WORDS: usize = STEP_WORDS;
    const STEP_BYTES: usize = Q8_STEP_BYTES;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        for block in 0..STEP_BLOCKS {
            // SAFETY: the caller's promise: a step of the panel and of each row.
            unsafe {
                let mut sums = starts::<S, R, V>(block, &x);
                for quad in 0..QUADS {
                    let at = block * Q8_BLOCK_BYTES + quad * PANEL * 4;
                    let weights: [S::Words; V] =
                        std::array::from_fn(|v| S::load_words(w(v).add(at + 4 * column::<S>(v))));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = S::splat_word(*x(r).add(block * QUADS + quad));
                        for (sum, w) in sums.iter_mut().zip(weights) {
                            *sum = S::dot_offset_quads(*sum, w, x);
                        }
                    }
                }
                let scales = STEP_BLOCKS * Q8_BLOCK_BYTES + block * PANEL * 2;
                add_block::<S, R, V>(acc, sums, |v| w(v).add(scales), |r| x(r).add(SCALES + block));
            }
        }
    }
}

impl Format for Q4 {
    const K: usize = STEP_K;
    const PAIRS: bool = false;
    const WORDS: usize = STEP_WORDS;
    const STEP_BYTES: usize = Q4_STEP_BYTES;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        for block in 0..STEP_BLOCKS {
            // SAFETY: the caller's promise: a step of the panel and of each row.
            unsafe {
                let mut sums = starts::<S, R, V>(block, &x);
                for quad in 0..QUADS / 2 {
                    let at = block * Q4_BLOCK_BYTES + quad * PANEL * 4;
                    let bytes: [S::Words; V] =
                        std::array::from_fn(|v| S::load_words(w(v).add(at + 4 * column::<S>(v))));
                    let (low, high) = (bytes.map(S::low_nibbles), bytes.map(S::high_nibbles));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let row = x(r).add(block * QUADS + quad);
                        let (first, second) =
                            (S::splat_word(*row), S::splat_word(*row.add(QUADS / 2)));
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = S::dot_quads(*sum, low[v], first);
                            *sum = S::dot_quads(*sum, high[v], second);
                        }
                    }
                }
                let scales = STEP_BLOCKS * Q4_BLOCK_BYTES + block * PANEL * 2;
                add_block::<S, R, V>(acc, sums, |v| w(v).add(scales), |r| x(r).add(SCALES + block));
            }
        }
    }
}

/// Integer sums of a block before its first dot.
///
/// # Safety
/// `x(r)` points to a step of the row.
#[inline(always)]
unsafe fn starts<S: Simd, const R: usize, const V: usize>(
    block: usize,
    x: &impl Fn(usize) -> *const u32,
) -> [[S::Words; V]; R] {
    // SAFETY: the caller's promise.
    std::array::from_fn(|r| [unsafe { S::splat_word(*x(r).add(STARTS + block)) }; V])
}

/// Adds a block's integer sums, scaled.
///
/// # Safety
/// `weight(v)` points to sixteen f16 scales of the panel that vector v lies in, `row(r)` to the row's.
#[inline(always)]
unsafe fn add_block<S: Simd, const R: usize, const V: usize>(
    acc: &mut [[S::F32; V]; R],
    sums: [[S::Words; V]; R],
    weight: impl Fn(usize) -> *const u8,
    row: impl Fn(usize) -> *const u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let weights: [S::F32; V] =
            std::array::from_fn(|v| S::load_f16(weight(v).add(2 * column::<S>(v)).cast()));
        for (r, (acc, sums)) in acc.iter_mut().zip(sums).enumerate() {
            let row = S::splat(*row(r).cast::<f32>());
            for (v, (acc, sum)) in acc.iter_mut().zip(sums).enumerate() {
                *acc = S::fma(S::float_of_words(sum), S::mul(weights[v], row), *acc);
            }
        }
    }
}
