//! Each lane operation on each instruction set against its definition, edge values included.

use half::{bf16, f16};

use super::Simd;
use crate::cpu::isa::{Isa, Kernel};

/// Runs every operation on the same inputs, and collects results as bits.
struct Probe<'a> {
    a: &'a [f32; 16],
    b: &'a [f32; 16],
    c: &'a [f32; 16],
    halves: &'a [u16; 32],
}

#[derive(Debug, PartialEq)]
struct Results {
    plain: Vec<Vec<u32>>,
    fused: Vec<u32>,
    sum_of_eight: f32,
    largest: f32,
}

impl Kernel for Probe<'_> {
    type Output = Results;

    #[inline(always)]
    fn run<S: Simd>(self) -> Results {
        let lanes = |f: &dyn Fn(usize) -> S::F32| {
            let mut out = [0.0f32; 16];
            for at in (0..16).step_by(S::LANES) {
                // SAFETY: sixteen lanes are one or two vectors.
                unsafe { S::store(out[at..].as_mut_ptr(), f(at)) };
            }
            out.iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
        };
        // SAFETY: as above; pairs take two words a lane.
        let (a, b, c) = unsafe {
            (
                |at: usize| S::load(self.a[at..].as_ptr()),
                |at: usize| S::load(self.b[at..].as_ptr()),
                |at: usize| S::load(self.c[at..].as_ptr()),
            )
        };
        // SAFETY: as above.
        let (pairs, wide_bf16, wide_f16) = unsafe {
            (
                |at: usize| S::load_words(self.halves[2 * at..].as_ptr().cast()),
                |at: usize| S::load_bf16(self.halves[at..].as_ptr()),
                |at: usize| S::load_f16(self.halves[at..].as_ptr()),
            )
        };
        let plain = vec![
            lanes(&|at| S::add(a(at), b(at))),
            lanes(&|at| S::sub(a(at), b(at))),
            lanes(&|at| S::mul(a(at), b(at))),
            lanes(&|at| S::div(a(at), b(at))),
            lanes(&|at| S::max(a(at), b(at))),
            lanes(&|at| S::min(a(at), b(at))),
            lanes(&|at| S::abs(a(at))),
            lanes(&|at| S::select_less(a(at), b(at), c(at), S::splat(7.0))),
            lanes(&|at| S::lower(pairs(at))),
            lanes(&|at| S::upper(pairs(at))),
            lanes(&|at| wide_bf16(at)),
            lanes(&|at| wide_f16(at)),
            lanes(&|_| S::exp2_of_shifted(S::splat(12_582_912.0 - 126.0))),
            lanes(&|_| S::exp2_of_shifted(S::splat(12_582_912.0 + 127.0))),
        ];
        let fused = lanes(&|at| S::fma(a(at), b(at), c(at)));
        // The first eight lanes: a vector, or a vector whose upper half is zero.
        let mut first = [0.0f32; 16];
        first[..8].copy_from_slice(&self.c[..8]);
        // SAFETY: one vector.
        let first = unsafe { S::load(first.as_ptr()) };
        Results { plain, fused, sum_of_eight: S::sum(first), largest: S::largest(first) }
    }
}

fn inputs() -> ([f32; 16], [f32; 16], [f32; 16], [u16; 32]) {
    let a = [
        1.5,
        -2.25,
        0.0,
        -0.0,
        f32::NAN,
        f32::INFINITY,
        1e-40,
        3.0,
        1e30,
        -1e30,
        5.0,
        6.0,
        0.1,
        0.2,
        0.3,
        -7.0,
    ];
    let b =
        [0.3, 2.25, -0.0, 0.0, 1.0, 1.0, 2.0, f32::NAN, 1e30, 1e30, -5.0, 7.0, 0.7, 0.1, -0.3, 3.0];
    let c = std::array::from_fn(|i| (i as f32).mul_add(-1.37, 4.1));
    let halves = std::array::from_fn(|i| [0x3f80, 0xc049, 0x0001, 0x7b7f][i % 4] ^ (i as u16));
    (a, b, c, halves)
}

fn canonical(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() { f32::NAN.to_bits() } else { bits }
}

#[test]
fn every_instruction_set_does_the_same() {
    let (a, b, c, halves) = inputs();
    let run = |isa: Isa| isa.dispatch(Probe { a: &a, b: &b, c: &c, halves: &halves });
    let want = run(Isa::Portable);
    for isa in Isa::available() {
        let got = run(isa);
        for (op, (got, want)) in got.plain.iter().zip(&want.plain).enumerate() {
            let same = got.iter().zip(want).all(|(&g, &w)| canonical(g) == canonical(w));
            assert!(same, "{isa:?}, operation {op}: {got:x?} {want:x?}");
        }
        assert_eq!((got.sum_of_eight, got.largest), (want.sum_of_eight, want.largest), "{isa:?}");
        for lane in 0..16 {
            let fused = a[lane].mul_add(b[lane], c[lane]);
            let separate = a[lane] * b[lane] + c[lane];
            let want = if isa == Isa::Portable { separate } else { fused };
            assert_eq!(canonical(got.fused[lane]), canonical(want.to_bits()), "{isa:?} {lane}");
        }
    }
}

#[test]
fn wide_loads_agree_with_half() {
    let (a, b, c, halves) = inputs();
    let got = Isa::detect().dispatch(Probe { a: &a, b: &b, c: &c, halves: &halves });
    for lane in 0..16 {
        let want = [
            bf16::from_bits(halves[2 * lane]).to_f32(),
            bf16::from_bits(halves[2 * lane + 1]).to_f32(),
            bf16::from_bits(halves[lane]).to_f32(),
            f16::from_bits(halves[lane]).to_f32(),
        ];
        let got = [8, 9, 10, 11].map(|op: usize| got.plain[op][lane]);
        assert_eq!(got.map(canonical), want.map(|want| canonical(want.to_bits())), "{lane}");
    }
}

/// One dot of pairs in lane 0.
struct Dot {
    acc: f32,
    a: [bf16; 2],
    b: [bf16; 2],
}

impl Kernel for Dot {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let pair = |[lower, upper]: [bf16; 2]| {
            u32::from(lower.to_bits()) | u32::from(upper.to_bits()) << 16
        };
        let (a, b) = (S::splat_word(pair(self.a)), S::splat_word(pair(self.b)));
        let mut out = [0.0f32; 16];
        // SAFETY: at most sixteen lanes.
        unsafe { S::store(out.as_mut_ptr(), S::dot_pairs(S::splat(self.acc), a, b)) };
        out[0]
    }
}

#[test]
fn a_dot_of_pairs_adds_the_upper_product_first() {
    let wide = bf16::from_f32(2.0f32.powi(60));
    let (one, minus, small) = (bf16::ONE, bf16::from_f32(-(2.0f32.powi(60))), bf16::from_f32(3.0));
    for isa in Isa::available() {
        // acc 3 + 2⁶⁰ (upper) − 2⁶⁰ (lower) loses the 3; the other way round as well, but
        // acc −2⁶⁰ + 2⁶⁰ (upper) + 3 (lower) keeps it, and would lose it if lower came first.
        let lost = Dot { acc: 3.0, a: [minus, wide], b: [one, one] };
        assert_eq!(isa.dispatch(lost), 0.0, "{isa:?}");
        let kept = Dot { acc: -(2.0f32.powi(60)), a: [small, wide], b: [one, one] };
        assert_eq!(isa.dispatch(kept), 3.0, "{isa:?}");
    }
}

#[test]
fn the_avx512_dot_flushes_denormals() {
    for isa in Isa::available().filter(|isa| isa.dots_pairs()) {
        let tiny = bf16::from_bits(1);
        let input = Dot { acc: 0.0, a: [bf16::ZERO, tiny], b: [bf16::ZERO, bf16::from_f32(1e30)] };
        assert_eq!(isa.dispatch(input), 0.0, "a denormal input counts as zero on {isa:?}");
        let small = bf16::from_f32(2.0f32.powi(-70));
        let output = Dot { acc: 0.0, a: [bf16::ZERO, small], b: [bf16::ZERO, small] };
        assert_eq!(isa.dispatch(output), 0.0, "a denormal result becomes zero on {isa:?}");
        let acc = Dot { acc: 1e-40, a: [bf16::ZERO; 2], b: [bf16::ZERO; 2] };
        assert_eq!(isa.dispatch(acc), 0.0, "a denormal sum counts as zero on {isa:?}");
    }
}

/// Where the machine has AVX-512, its instructions and the emulation agree on random pairs.
#[test]
fn the_emulated_dot_is_the_hardwares() {
    if Isa::Avx512.checked().is_err() {
        return;
    }
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bf16::from_bits((state >> 40) as u16 & 0xbfff)
    };
    for _ in 0..100_000 {
        let (acc, a, b) = (random().to_f32(), [random(), random()], [random(), random()]);
        let bits = [Isa::Avx512, Isa::Emulated512]
            .map(|isa| canonical(isa.dispatch(Dot { acc, a, b }).to_bits()));
        assert_eq!(bits[0], bits[1], "{acc} {a:?} {b:?}");
    }
}

/// What the operations on bytes give for one word of weights, of a row, and of an accumulator.
struct Bytes {
    acc: i32,
    w: [u8; 4],
    x: [i8; 4],
}

#[derive(Debug, PartialEq)]
struct BytesResults {
    quads: i32,
    offset_quads: i32,
    low: u32,
    high: u32,
    float: f32,
}

impl Kernel for Bytes {
    type Output = BytesResults;

    #[inline(always)]
    fn run<S: Simd>(self) -> BytesResults {
        let (w, x) = (u32::from_le_bytes(self.w), self.x.map(i8::cast_unsigned));
        let acc = S::splat_word(self.acc.cast_unsigned());
        let (w, x) = (S::splat_word(w), S::splat_word(u32::from_le_bytes(x)));
        // Sums as f32 are exact: they are small.
        let first = |words: S::Words| {
            let mut out = [0.0f32; 16];
            // SAFETY: at most sixteen lanes.
            unsafe { S::store(out.as_mut_ptr(), S::float_of_words(words)) };
            out[0]
        };
        // Sixteen bits at a time keep words of any bits exact.
        let bits = |words: S::Words| {
            let mut out = [0.0f32; 16];
            // SAFETY: as above.
            unsafe { S::store(out.as_mut_ptr(), S::upper(words)) };
            let upper = out[0].to_bits();
            // SAFETY: as above.
            unsafe { S::store(out.as_mut_ptr(), S::lower(words)) };
            upper | out[0].to_bits() >> 16
        };
        BytesResults {
            quads: first(S::dot_quads(acc, S::low_nibbles(w), x)) as i32,
            offset_quads: first(S::dot_offset_quads(acc, w, x)) as i32
                - S::OFFSET_LEFT * self.x.iter().map(|x| i32::from(*x)).sum::<i32>(),
            low: bits(S::low_nibbles(w)),
            high: bits(S::high_nibbles(w)),
            float: first(acc),
        }
    }
}

/// The largest products of either sign are among them: VPMADDUBSW would saturate.
#[test]
fn dots_of_bytes_are_exact_on_every_instruction_set() {
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u32
    };
    let extremes = [(0, 127), (0, -127), (255, 127), (255, -127), (1, 127), (128, -127)];
    let extremes = extremes.map(|(w, x)| ([w; 4], [x; 4]));
    let random = (0..3000).map(|_| {
        let x = random().to_le_bytes().map(|x| x.cast_signed().max(-127));
        (random().to_le_bytes(), x)
    });
    for (w, x) in extremes.into_iter().chain(random.collect::<Vec<_>>()) {
        let acc = -5000;
        let dot = |offset: i32, mask: u8| -> i32 {
            acc + w
                .iter()
                .zip(x)
                .map(|(w, x)| (i32::from(w & mask) - offset) * i32::from(x))
                .sum::<i32>()
        };
        let word = u32::from_le_bytes(w);
        let want = BytesResults {
            quads: dot(0, 15),
            offset_quads: dot(128, 255),
            low: word & 0x0f0f_0f0f,
            high: word >> 4 & 0x0f0f_0f0f,
            float: -5000.0,
        };
        for isa in Isa::available() {
            assert_eq!(isa.dispatch(Bytes { acc, w, x }), want, "{isa:?} {w:?} {x:?}");
        }
    }
}

/// Widens sixteen codes.
struct Fp8<'a>(&'a [u8; 16]);

impl Kernel for Fp8<'_> {
    type Output = [f32; 16];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 16] {
        let mut out = [0.0; 16];
        for at in (0..16).step_by(S::LANES) {
            // SAFETY: sixteen lanes are one or two vectors.
            unsafe { S::store(out[at..].as_mut_ptr(), S::load_fp8(self.0[at..].as_ptr())) };
        }
        out
    }
}

#[test]
fn every_fp8_is_widened_exactly() {
    for isa in Isa::available() {
        for first in (0..=255u8).step_by(16) {
            let codes: [u8; 16] = std::array::from_fn(|i| first + i as u8);
            for (code, got) in codes.iter().zip(isa.dispatch(Fp8(&codes))) {
                let want = crate::quantize::e4m3_value(*code) / 256.0;
                let is_number = code & 0x7f != 0x7f;
                assert!(!is_number || got == want, "{code} {got} {want} {isa:?}");
            }
        }
    }
}
