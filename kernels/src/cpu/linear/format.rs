//! How one step of a packed panel meets rows: one k for f32 and f16, a pair of k for bf16.

use crate::cpu::simd::Simd;
use crate::cpu::weight::PANEL;

/// A weight format's inner step over `R` rows and `V` vectors of columns.
pub(crate) trait Format {
    /// Elements of k in a step, and 32-bit words of a row.
    const K: usize;
    /// Whether rows are bf16 pairs.
    const PAIRS: bool;
    /// Words of a prepared row that a step reads.
    const WORDS: usize;
    /// Bytes of a panel's step.
    const STEP_BYTES: usize;
    /// Bytes of a panel's column in a step.
    const COLUMN_BYTES: usize = Self::STEP_BYTES / PANEL;

    /// `acc[r][v] += x[r] · w[v]`, each element's k in ascending steps.
    ///
    /// # Safety
    /// `w(v)` points to `LANES` columns of this step, `x[r]` to the row's words of this step.
    unsafe fn step<S: Simd, const R: usize, const V: usize>(
        acc: &mut [[S::F32; V]; R],
        w: impl Fn(usize) -> *const u8,
        x: impl Fn(usize) -> *const u32,
    );
}

/// f32 weights, f32 rows.
pub(crate) struct F32;

/// f16 weights widened in registers, f32 rows.
pub(crate) struct F16;

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
            let w = std::array::from_fn(|v| S::load(w(v).cast()));
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
            let w = std::array::from_fn(|v| S::load_f16(w(v).cast()));
            multiply::<S, R, V>(acc, w, |r| *x(r).cast::<f32>());
        }
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
            let upper = std::array::from_fn(|v| S::upper(S::load_pairs(w(v).cast())));
            multiply::<S, R, V>(acc, upper, |r| *x(r).cast::<f32>().add(1));
            let lower = std::array::from_fn(|v| S::lower(S::load_pairs(w(v).cast())));
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
            let w: [S::Pairs; V] = std::array::from_fn(|v| S::load_pairs(w(v).cast()));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat_pair(*x(r));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = S::dot_pairs(*acc, w, x);
                }
            }
        }
    }
}
