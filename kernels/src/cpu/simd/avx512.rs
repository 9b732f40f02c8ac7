//! Sixteen lanes in AVX-512 registers, with the dot products of bf16 and of bytes.

use std::arch::x86_64::*;

use super::Simd;

/// AVX-512 F, BW, DQ, VL, BF16, VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Upper half added to (or compared with) lower half, down to one lane.
macro_rules! fold {
    ($lanes:expr, $wide:ident, $half:ident, $one:ident) => {{
        let lanes = $lanes;
        let upper = _mm512_extractf32x8_ps::<1>(lanes);
        let eight = $wide(_mm512_castps512_ps256(lanes), upper);
        let four = $half(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = $half(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($one(two, _mm_movehdup_ps(two)))
    }};
}

// SAFETY (all blocks of this file): `Isa::dispatch` runs kernels with these lanes only where the
// features are present; pointer methods pass on their caller's promise.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const DOTS_PAIRS: bool = true;
    type F32 = __m512;
    type Words = __m512i;
    /// VPDPBUSD takes weights as they are.
    const OFFSET_LEFT: i32 = 128;

    #[inline(always)]
    fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    fn select_less(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }

    #[inline(always)]
    fn exp2_of_shifted(shifted: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000)))
        }
    }

    #[inline(always)]
    fn sum(a: __m512) -> f32 {
        unsafe { fold!(a, _mm256_add_ps, _mm_add_ps, _mm_add_ss) }
    }

    #[inline(always)]
    fn largest(a: __m512) -> f32 {
        unsafe { fold!(a, _mm256_max_ps, _mm_max_ps, _mm_max_ss) }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn splat_word(word: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }

    /// The sign and the other seven bits move to where f16 has them; its exponent's bias is 8 more.
    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> __m512 {
        unsafe {
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
            let placed = _mm256_slli_epi16::<7>(wide);
            let mask = _mm256_set1_epi16(0xbfffu16.cast_signed());
            _mm512_cvtph_ps(_mm256_and_si256(placed, mask))
        }
    }

    #[inline(always)]
    fn float_of_words(words: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(words) }
    }

    #[inline(always)]
    fn low_nibbles(words: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(words, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(words: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(words), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    fn dot_quads(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }

    #[inline(always)]
    fn dot_offset_quads(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }

    #[inline(always)]
    fn lower(pairs: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)) }
    }

    #[inline(always)]
    fn upper(pairs: __m512i) -> __m512 {
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(pairs, mask))
        }
    }

    #[inline(always)]
    fn dot_pairs(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        // The transmutes: two names for 512 plain bits.
        unsafe {
            let a = std::mem::transmute::<__m512i, __m512bh>(a);
            let b = std::mem::transmute::<__m512i, __m512bh>(b);
            _mm512_dpbf16_ps(acc, a, b)
        }
    }
}
