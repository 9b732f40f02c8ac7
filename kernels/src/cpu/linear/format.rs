//! How one step of a packed panel meets rows: one k for f32, f16 and fp8, a pair of k for bf16; two
//! blocks of k are in `blocks`.

use crate::cpu::simd::Simd;
use crate::cpu::weight::{FP8_HEAD_BYTES, PANEL};

/// A weight format's inner step over `R` rows and `V` vectors of columns.
pub(crate) trait Format {
    /// Elements of k in a step.
    const K: usize;
    /// Whether rows are bf16 pairs.
    const PAIRS: bool;
    /// Words of a prepared row that a step reads.
    const WORDS: usize;
    /// Bytes of a panel's step.
    const STEP_BYTES: usize;
    /// Bytes of a panel before its first step.
    const HEAD_BYTES: usize = 0;

    /// `acc[r][v] += x[r] · w[v]`, each element's k in ascending steps.
    ///
    /// # Safety
    /// `w(v)` points to this step of the panel that vector v lies in (see [`column`]), `x(r)` to the
    /// row's words of this step.
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    );

    /// What becomes of a sum over all of k.
    ///
    /// # Safety
    /// `panel` points to the panel that vector `v` lies in.
    #[inline(always)]
    unsafe fn finish<S: Simd>(sum: S::F32, panel: *const u8, v: usize) -> S::F32 {
        let _ = (panel, v);
        sum
    }
}

/// The first column, within its panel, of vector `v`: two vectors of eight lanes share a panel.
#[inline(always)]
pub(super) fn column<S: Simd>(v: usize) -> usize {
    v * S::LANES % PANEL
}

/// f32 weights, f32 rows.
pub(crate) struct F32;

/// f16 weights widened in registers, f32 rows.
pub(crate) struct F16;

/// e4m3 weights widened in registers, f32 rows; a scale a column in front of the panel.
pub(crate) struct Fp8;

/// bf16 weights widened in registers, rows of f32 that hold bf16 values.
pub(crate) struct Bf16Widened;

/// bf16 weights and rows of bf16 pairs, dotted by pairs.
pub(crate) struct Bf16Pairs;

#[inline(always)]
fn multiply<S: Simd, const R: usize, const V: usize>(
    acc: &mut [[S::F32; V]; R],
    w: [S::F32; V],
    x: impl Fn(usize) -> f32,
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        let x = S::splat(x(r));
        for (acc, w) in acc.iter_mut().zip(w) {
            *acc = S::fma(w, x, *acc);
        }
    }
}

impl Format for F32 {
    const K: usize = 1;
    const PAIRS: bool = false;
    const WORDS: usize = 1;
    const STEP_BYTES: usize = PANEL * 4;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let w = std::array::from_fn(|v| S::load(w(v).add(4 * column::<S>(v)).cast()));
            multiply::<S, R, V>(acc, w, |r| *x(r).cast::<f32>());
        }
    }
}

impl Format for F16 {
    const K: usize = 1;
    const PAIRS: bool = false;
    const WORDS: usize = 1;
    const STEP_BYTES: usize = PANEL * 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let w = std::array::from_fn(|v| S::load_f16(w(v).add(2 * column::<S>(v)).cast()));
            multiply::<S, R, V>(acc, w, |r| *x(r).cast::<f32>());
        }
    }
}

impl Format for Fp8 {
    const K: usize = 1;
    const PAIRS: bool = false;
    const WORDS: usize = 1;
    const STEP_BYTES: usize = PANEL;
    const HEAD_BYTES: usize = FP8_HEAD_BYTES;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let w = std::array::from_fn(|v| S::load_fp8(w(v).add(column::<S>(v))));
            multiply::<S, R, V>(acc, w, |r| *x(r).cast::<f32>());
        }
    }

    /// The scale brings back the 2⁸ that widening left out.
    #[inline(always)]
    unsafe fn finish<S: Simd>(sum: S::F32, panel: *const u8, v: usize) -> S::F32 {
        // SAFETY: scales of all columns are in front of the panel.
        unsafe { S::mul(sum, S::load(panel.add(4 * column::<S>(v)).cast())) }
    }
}

impl Format for Bf16Widened {
    const K: usize = 2;
    const PAIRS: bool = false;
    const WORDS: usize = 2;
    const STEP_BYTES: usize = PANEL * 4;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        // The upper element first, as VDPBF16PS does it.
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = |v| S::load_words(w(v).add(4 * column::<S>(v)));
            let upper = std::array::from_fn(|v| S::upper(pairs(v)));
            multiply::<S, R, V>(acc, upper, |r| *x(r).cast::<f32>().add(1));
            let lower = std::array::from_fn(|v| S::lower(pairs(v)));
            multiply::<S, R, V>(acc, lower, |r| *x(r).cast::<f32>());
        }
    }
}

impl Format for Bf16Pairs {
    const K: usize = 2;
    const PAIRS: bool = true;
    const WORDS: usize = 1;
    const STEP_BYTES: usize = PANEL * 4;

    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let w: [S::Words; V] =
                std::array::from_fn(|v| S::load_words(w(v).add(4 * column::<S>(v))));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat_word(*x(r));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = S::dot_pairs(*acc, w, x);
                }
            }
        }
    }
}
