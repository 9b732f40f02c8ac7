//! Lanes as plain arrays: the portable path, and the AVX-512 path for machines without it.

use half::f16;

use super::Simd;

/// Eight lanes that every compiler target has; multiply and add round separately.
pub(crate) type Portable = Arrays<8, false>;

/// Sixteen lanes with the exact results of AVX-512 F, BF16 and VNNI.
pub(crate) type Emulated512 = Arrays<16, true>;

/// `N` lanes in an array. `EXACT512` fuses multiply and add and dots pairs as AVX-512 does.
#[derive(Clone, Copy)]
pub(crate) struct Arrays<const N: usize, const EXACT512: bool>;

#[inline(always)]
fn zip<const N: usize>(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

/// Upper half onto lower half until one lane is left.
#[inline(always)]
fn fold<const N: usize>(mut lanes: [f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = f(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Zero of the same sign for a denormal.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { f32::copysign(0.0, value) } else { value }
}

/// One rounding. Not inlined: the emulation need not be fast, and unrolled tiles of it compile long.
#[inline(never)]
fn fused<const N: usize>(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
    std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
}

/// VDPBF16PS, lane by lane.
#[inline(never)]
fn dot_exact<const N: usize>(acc: [f32; N], a: [u32; N], b: [u32; N]) -> [f32; N] {
    let step = |a: u32, b: u32, c: f32| {
        flush(flush(f32::from_bits(a)).mul_add(flush(f32::from_bits(b)), flush(c)))
    };
    std::array::from_fn(|lane| {
        let upper = step(a[lane] & 0xffff_0000, b[lane] & 0xffff_0000, acc[lane]);
        step(a[lane] << 16, b[lane] << 16, upper)
    })
}

/// Four products of an unsigned and a signed byte, no saturation; `offset` is taken from the former.
#[inline(always)]
fn dot_bytes<const N: usize>(acc: [u32; N], w: [u32; N], x: [u32; N], offset: i32) -> [u32; N] {
    std::array::from_fn(|lane| {
        let (w, x) = (w[lane].to_le_bytes(), x[lane].to_le_bytes());
        let product = |i: usize| (i32::from(w[i]) - offset) * i32::from(x[i].cast_signed());
        let sum = product(0) + product(1) + product(2) + product(3);
        acc[lane].wrapping_add(sum.cast_unsigned())
    })
}

/// VPDPBUSD, lane by lane.
#[inline(never)]
fn dot_bytes_exact<const N: usize>(acc: [u32; N], w: [u32; N], x: [u32; N]) -> [u32; N] {
    dot_bytes(acc, w, x, 0)
}

impl<const N: usize, const EXACT512: bool> Simd for Arrays<N, EXACT512> {
    const LANES: usize = N;
    const DOTS_PAIRS: bool = EXACT512;
    type F32 = [f32; N];
    type Words = [u32; N];
    const OFFSET_LEFT: i32 = if EXACT512 { 128 } else { 0 };

    #[inline(always)]
    fn splat(value: f32) -> [f32; N] {
        [value; N]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; N] {
        // SAFETY: the caller gives N readable elements.
        unsafe { from.cast::<[f32; N]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; N]) {
        // SAFETY: the caller gives N writable elements.
        unsafe { to.cast::<[f32; N]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> [f32; N] {
        // SAFETY: the caller gives N readable elements.
        let words = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        words.map(|word| f32::from_bits(u32::from(word) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> [f32; N] {
        // SAFETY: the caller gives N readable elements.
        let words = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        words.map(|word| f16::from_bits(word).to_f32())
    }

    #[inline(always)]
    fn add(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        if EXACT512 {
            fused(a, b, c)
        } else {
            std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
        }
    }

    #[inline(always)]
    fn max(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(a: [f32; N]) -> [f32; N] {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn select_less(a: [f32; N], b: [f32; N], yes: [f32; N], no: [f32; N]) -> [f32; N] {
        std::array::from_fn(|lane| if a[lane] < b[lane] { yes[lane] } else { no[lane] })
    }

    #[inline(always)]
    fn exp2_of_shifted(shifted: [f32; N]) -> [f32; N] {
        shifted.map(|lane| f32::from_bits((lane.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    fn sum(a: [f32; N]) -> f32 {
        fold(a, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(a: [f32; N]) -> f32 {
        fold(a, f32::max)
    }

    #[inline(always)]
    unsafe fn load_fp8(from: *const u8) -> [f32; N] {
        // SAFETY: the caller gives N readable elements.
        let codes = unsafe { from.cast::<[u8; N]>().read_unaligned() };
        codes.map(|code| {
            let (sign, rest) = (u16::from(code & 0x80) << 8, u16::from(code & 0x7f) << 7);
            f16::from_bits(sign | rest).to_f32()
        })
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> [u32; N] {
        // SAFETY: the caller gives 4 N readable bytes. Little-endian: the first one is below.
        let words = unsafe { from.cast::<[u32; N]>().read_unaligned() };
        words.map(u32::from_le)
    }

    #[inline(always)]
    fn splat_word(word: u32) -> [u32; N] {
        [word; N]
    }

    #[inline(always)]
    fn float_of_words(words: [u32; N]) -> [f32; N] {
        words.map(|word| word.cast_signed() as f32)
    }

    #[inline(always)]
    fn low_nibbles(words: [u32; N]) -> [u32; N] {
        words.map(|word| word & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn high_nibbles(words: [u32; N]) -> [u32; N] {
        words.map(|word| word >> 4 & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn dot_quads(acc: [u32; N], w: [u32; N], x: [u32; N]) -> [u32; N] {
        if EXACT512 { dot_bytes_exact(acc, w, x) } else { dot_bytes(acc, w, x, 0) }
    }

    #[inline(always)]
    fn dot_offset_quads(acc: [u32; N], w: [u32; N], x: [u32; N]) -> [u32; N] {
        if EXACT512 { dot_bytes_exact(acc, w, x) } else { dot_bytes(acc, w, x, 128) }
    }

    #[inline(always)]
    fn lower(pairs: [u32; N]) -> [f32; N] {
        pairs.map(|pair| f32::from_bits(pair << 16))
    }

    #[inline(always)]
    fn upper(pairs: [u32; N]) -> [f32; N] {
        pairs.map(|pair| f32::from_bits(pair & 0xffff_0000))
    }

    /// VDPBF16PS flushes denormal inputs and results to zero and rounds to nearest even, whatever
    /// MXCSR says; the upper products are added first (Intel SDM, VDPBF16PS, Operation).
    #[inline(always)]
    fn dot_pairs(acc: [f32; N], a: [u32; N], b: [u32; N]) -> [f32; N] {
        if !EXACT512 {
            let acc = Self::fma(Self::upper(a), Self::upper(b), acc);
            return Self::fma(Self::lower(a), Self::lower(b), acc);
        }
        dot_exact(acc, a, b)
    }
}
