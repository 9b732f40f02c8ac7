//! Eight lanes in AVX2 registers, with FMA and F16C.

use std::arch::x86_64::*;

use super::Simd;

/// AVX2, FMA, F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY (all blocks of this file): `Isa::dispatch` runs kernels with these lanes only where AVX2,
// FMA and F16C are present; pointer methods pass on their caller's promise.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const DOTS_PAIRS: bool = false;
    type F32 = __m256;
    type Words = __m256i;
    const OFFSET_LEFT: i32 = 0;

    #[inline(always)]
    fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    fn select_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    fn exp2_of_shifted(shifted: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
        }
    }

    #[inline(always)]
    fn sum(a: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(a: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    fn splat_word(word: u32) -> __m256i {
        unsafe { _mm256_set1_epi32(word.cast_signed()) }
    }

    /// The sign and the other seven bits move to where f16 has them; its exponent's bias is 8 more.
    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> __m256 {
        unsafe {
            let wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(from.cast()));
            let placed = _mm_slli_epi16::<7>(wide);
            let mask = _mm_set1_epi16(0xbfffu16.cast_signed());
            _mm256_cvtph_ps(_mm_and_si128(placed, mask))
        }
    }

    #[inline(always)]
    fn float_of_words(words: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(words) }
    }

    #[inline(always)]
    fn low_nibbles(words: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(words, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    fn high_nibbles(words: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(words), _mm256_set1_epi8(15)) }
    }

    /// Two products of at most 15 · 128 fit 16 bits.
    #[inline(always)]
    fn dot_quads(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe {
            let pairs = _mm256_maddubs_epi16(w, x);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    /// VPMADDUBSW saturates at 16 bits: it takes magnitudes of weights, at most 128, and signs go to
    /// x, at most 127, so that two products fit.
    #[inline(always)]
    fn dot_offset_quads(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe {
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn lower(pairs: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)) }
    }

    #[inline(always)]
    fn upper(pairs: __m256i) -> __m256 {
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000u32.cast_signed());
            _mm256_castsi256_ps(_mm256_and_si256(pairs, mask))
        }
    }
}
