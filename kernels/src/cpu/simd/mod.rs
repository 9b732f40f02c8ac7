//! Vectors of f32 lanes: one kernel source runs on every instruction set.
//!
//! A kernel is generic over [`Simd`], marked `#[inline(always)]`, and entered through
//! [`crate::cpu::isa::Isa::dispatch`], which compiles it once for each instruction set. No
//! operation here depends on the number of rows, so bits depend on the instruction set alone.

mod arrays;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub(crate) use arrays::{Emulated512, Portable};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;

/// Lanes of f32 and what kernels do with them.
///
/// # Safety rule of all methods
/// The instruction set must be present: kernels are entered through `Isa::dispatch` only. Methods
/// that take a pointer also need [`Simd::LANES`] valid elements there (any alignment).
pub(crate) trait Simd: Copy + 'static {
    /// Lanes of a vector: 8 or 16.
    const LANES: usize;
    /// Whether a bf16 linear keeps its rows as bf16 pairs for [`Simd::dot_pairs`].
    const DOTS_PAIRS: bool;
    /// A vector of f32.
    type F32: Copy;
    /// A vector of 32-bit words: integers, quads of bytes, or pairs of bf16 (element 2i below,
    /// 2i + 1 above).
    type Words: Copy;
    /// What [`Simd::dot_offset_quads`] leaves of the 128 that are in its weights.
    const OFFSET_LEFT: i32;

    /// All lanes `value`.
    fn splat(value: f32) -> Self::F32;
    /// Lanes from memory.
    ///
    /// # Safety
    /// `LANES` readable f32 at `from`.
    unsafe fn load(from: *const f32) -> Self::F32;
    /// Lanes to memory.
    ///
    /// # Safety
    /// `LANES` writable f32 at `to`.
    unsafe fn store(to: *mut f32, value: Self::F32);
    /// `LANES` bf16 widened, exactly.
    ///
    /// # Safety
    /// `LANES` readable 16-bit words at `from`.
    unsafe fn load_bf16(from: *const u16) -> Self::F32;
    /// `LANES` f16 widened, exactly.
    ///
    /// # Safety
    /// `LANES` readable 16-bit words at `from`.
    unsafe fn load_f16(from: *const u16) -> Self::F32;

    /// `a + b`.
    fn add(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a − b`.
    fn sub(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b`.
    fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b + c`; one rounding where the instruction set can.
    fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger; `b` where either is NaN.
    fn max(a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` where either is NaN.
    fn min(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `|a|`.
    fn abs(a: Self::F32) -> Self::F32;
    /// Where `a < b` (false on NaN) `yes`, else `no`.
    fn select_less(a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// `2ⁿ` for lanes that hold `n + 1.5·2²³` with n in −126..=127.
    fn exp2_of_shifted(shifted: Self::F32) -> Self::F32;
    /// All lanes added: upper half to lower half, again and again.
    fn sum(a: Self::F32) -> f32;
    /// The largest lane (no NaN).
    fn largest(a: Self::F32) -> f32;

    /// `LANES` e4m3 (no NaN) widened, times 2⁻⁸: exactly.
    ///
    /// # Safety
    /// `LANES` readable bytes at `from`.
    unsafe fn load_fp8(from: *const u8) -> Self::F32;

    /// Words from memory, little-endian.
    ///
    /// # Safety
    /// `4 · LANES` readable bytes at `from`.
    unsafe fn load_words(from: *const u8) -> Self::Words;
    /// One word in all lanes.
    fn splat_word(word: u32) -> Self::Words;
    /// Signed integers as f32; exact up to 2²⁴.
    fn float_of_words(words: Self::Words) -> Self::F32;
    /// The lower four bits of each byte.
    fn low_nibbles(words: Self::Words) -> Self::Words;
    /// The upper four bits of each byte.
    fn high_nibbles(words: Self::Words) -> Self::Words;
    /// `acc + Σ w · x` over the four bytes of a lane, exactly: w unsigned, at most 15, x signed.
    fn dot_quads(acc: Self::Words, w: Self::Words, x: Self::Words) -> Self::Words;
    /// `acc + Σ (w − 128 + OFFSET_LEFT) · x` over the four bytes of a lane, exactly: w unsigned, x
    /// signed, within ±127.
    fn dot_offset_quads(acc: Self::Words, w: Self::Words, x: Self::Words) -> Self::Words;
    /// The lower element of each pair, widened.
    fn lower(pairs: Self::Words) -> Self::F32;
    /// The upper element of each pair, widened.
    fn upper(pairs: Self::Words) -> Self::F32;
    /// `acc + upper·upper`, rounded, then `+ lower·lower`, rounded: the order of VDPBF16PS.
    #[inline(always)]
    fn dot_pairs(acc: Self::F32, a: Self::Words, b: Self::Words) -> Self::F32 {
        let acc = Self::fma(Self::upper(a), Self::upper(b), acc);
        Self::fma(Self::lower(a), Self::lower(b), acc)
    }
}

#[cfg(test)]
mod tests;
