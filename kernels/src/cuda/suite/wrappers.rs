//! Each wrapper of ptx.cuh against the emulation: bit for bit, or within the bound that is stated here.
//!
//! The emulation's results are embedded, since a machine with a card need have no C++ compiler.
//! wrappers.bin holds the words of all cases one after another; `gpu --write-expectations` makes it.

use std::sync::Arc;

use half::{bf16, f16};

use super::finding::Check;
use super::{Finding, Run};
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::SUITE_WRAPPERS;
use crate::error::KernelError;

/// Mirrors `Wrapper` of suite_wrappers.cu.
#[repr(C)]
struct Wrapper {
    input: DevicePointer,
    out: DevicePointer,
}

/// One kernel of suite_wrappers.cu.
struct Case {
    kernel: &'static str,
    input: Input,
    /// Words that it gives.
    words: usize,
    shared_bytes: usize,
    close: Close,
}

/// What a kernel is given.
#[derive(Clone, Copy)]
enum Input {
    /// Any words.
    Words,
    /// Floats of every size and kind, also those halfway between two of 16 bits.
    Floats,
    /// Floats between −8 and 8.
    Moderate,
    /// Pairs of small whole numbers, whose products and sums are exact.
    WholeBf16,
    /// The same in the other type.
    WholeF16,
    /// Pairs of numbers from 1 to 2: sums of products must be rounded, and nothing cancels.
    RoundedBf16,
}

/// When a result counts as the same.
#[derive(Clone, Copy, Debug)]
enum Close {
    /// Every bit.
    Bits,
    /// Every bit of a float; one NaN is as good as another.
    Float,
    /// So many floats away at most.
    Ulps(u32),
    /// So many doubles away at most.
    DoubleUlps(u64),
}

const THREADS: u32 = 64;
const BLOCKS: u32 = 16;
const ALL: usize = (THREADS * BLOCKS) as usize;
const INPUT_WORDS: usize = ALL * 4;

const fn case(kernel: &'static str, input: Input, close: Close) -> Case {
    Case { kernel, input, words: ALL * 4, shared_bytes: 2048, close }
}

/// In the order of wrappers.bin. Bounds: CUDA states 2 ulp at most for `expf`, `tanhf` and `erff`, 1
/// for `logf` and `log`; the host's functions err by as much.
const CASES: [Case; 26] = [
    case("wrapper_indices", Input::Words, Close::Bits),
    case("wrapper_barriers", Input::Words, Close::Bits),
    case("wrapper_shuffles", Input::Words, Close::Bits),
    case("wrapper_wide_shuffles", Input::Words, Close::Bits),
    case("wrapper_narrows", Input::Floats, Close::Bits),
    case("wrapper_widens", Input::Words, Close::Float),
    case("wrapper_loads", Input::Words, Close::Bits),
    case("wrapper_arithmetic", Input::Floats, Close::Float),
    case("wrapper_products", Input::Words, Close::Bits),
    case("wrapper_pairs", Input::Words, Close::Bits),
    case("wrapper_pair_products", Input::Words, Close::Bits),
    case("wrapper_approximations", Input::Moderate, Close::Ulps(4)),
    case("wrapper_logarithms", Input::Moderate, Close::DoubleUlps(2)),
    Case { words: 36, ..case("wrapper_atomics", Input::Words, Close::Bits) },
    Case { words: ALL + 2, ..case("wrapper_fences", Input::Words, Close::Bits) },
    case("wrapper_copies", Input::Words, Close::Bits),
    Case { words: ALL * 8, ..case("wrapper_matrices", Input::Words, Close::Bits) },
    case("wrapper_bf16", Input::WholeBf16, Close::Bits),
    case("wrapper_f16", Input::WholeF16, Close::Bits),
    // Of sums of 32 products: a card may cut where the emulation rounds.
    case("wrapper_byte_dots", Input::Words, Close::Bits),
    case("wrapper_rounding", Input::RoundedBf16, Close::Ulps(64)),
    case("wrapper_half_copies", Input::Words, Close::Bits),
    case("wrapper_picks", Input::Words, Close::Bits),
    case("wrapper_byte_products", Input::Words, Close::Bits),
    // PTX states 2^-22 of the value.
    case("wrapper_fast", Input::Moderate, Close::Ulps(4)),
    case("wrapper_widened_codes", Input::Words, Close::Bits),
];

static EXPECTED: &[u8] = include_bytes!("wrappers.bin");

pub(super) fn run(run: &mut Run<'_>) -> Result<bool, KernelError> {
    let expected = words_of(EXPECTED);
    let mut rest = &expected[..];
    for case in &CASES {
        if !(run.keeps_going)() {
            return Ok(false);
        }
        let Some((want, others)) = rest.split_at_checked(case.words) else {
            return Err(KernelError::Fault("wrappers.bin is not of these cases".into()));
        };
        rest = others;
        let got = case.run(run.driver)?;
        (run.put)(Finding::Check(case.compare(&got, want)));
    }
    Ok(true)
}

/// The words of all cases on `driver`, as bytes.
pub(super) fn expectations(driver: &Arc<dyn Driver>) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    for case in &CASES {
        bytes.extend(case.run(driver)?.into_iter().flat_map(u32::to_le_bytes));
    }
    Ok(bytes)
}

impl Case {
    fn run(&self, driver: &Arc<dyn Driver>) -> Result<Vec<u32>, KernelError> {
        let words = self.input.words();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let input = DeviceBuffer::new(driver, bytes.len(), "a wrapper's input")?;
        input.upload(0, &bytes)?;
        // Zeros, which the atomics begin with.
        let out = DeviceBuffer::new(driver, self.words * 4, "a wrapper's results")?;
        let parameters = Wrapper { input: input.pointer(), out: out.pointer() };
        let kernel = Kernel::new(&SUITE_WRAPPERS, self.kernel, THREADS);
        let grid = Grid { blocks: [BLOCKS, 1, 1], shared_bytes: self.shared_bytes };
        // SAFETY: as much input and room as suite_wrappers.cu asks for.
        unsafe { launch(&**driver, &kernel, grid, &parameters) }?;
        let mut bytes = vec![0; self.words * 4];
        out.download(0, &mut bytes)?;
        Ok(words_of(&bytes))
    }

    fn compare(&self, got: &[u32], want: &[u32]) -> Check {
        let mut check = Check::new(self.kernel);
        // A double is two words.
        let width = if matches!(self.close, Close::DoubleUlps(_)) { 2 } else { 1 };
        for (at, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
            let wrong = || format!("{at}: {got:08x?} instead of {want:08x?}");
            check.add((!self.close.is_met(got, want)).then(wrong));
        }
        check
    }
}

impl Close {
    fn is_met(self, got: &[u32], want: &[u32]) -> bool {
        if got == want {
            return true;
        }
        let float = |words: &[u32]| f32::from_bits(words[0]);
        let double =
            |words: &[u32]| f64::from_bits(u64::from(words[0]) | u64::from(words[1]) << 32);
        match self {
            Close::Bits => false,
            Close::Float => float(got).is_nan() && float(want).is_nan(),
            Close::Ulps(most) => {
                let (a, b) = (float(got), float(want));
                let ordered = |x: f32| i64::from(x.abs().to_bits()) * if x < 0.0 { -1 } else { 1 };
                !a.is_nan() && !b.is_nan() && ordered(a).abs_diff(ordered(b)) <= u64::from(most)
            }
            Close::DoubleUlps(most) => {
                let (a, b) = (double(got), double(want));
                let ordered = |x: f64| i128::from(x.abs().to_bits()) * if x < 0.0 { -1 } else { 1 };
                !a.is_nan() && !b.is_nan() && ordered(a).abs_diff(ordered(b)) <= u128::from(most)
            }
        }
    }
}

impl Input {
    fn words(self) -> Vec<u32> {
        (0..INPUT_WORDS).map(|index| self.word(index)).collect()
    }

    fn word(self, index: usize) -> u32 {
        let any = scattered(index);
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        // Whole numbers from −8 to 8.
        let whole = |bits: u32| (bits % 17) as f32 - 8.0;
        let size = |bits: u32| 1.0 + (bits & 127) as f32 / 128.0;
        match self {
            Input::Words => any,
            Input::Floats => float(index, any),
            Input::Moderate => ((any as f32 / u32::MAX as f32 - 0.5) * 16.0).to_bits(),
            Input::WholeBf16 => pair(
                bf16::from_f32(whole(any)).to_bits(),
                bf16::from_f32(whole(any >> 16)).to_bits(),
            ),
            Input::WholeF16 => {
                pair(f16::from_f32(whole(any)).to_bits(), f16::from_f32(whole(any >> 16)).to_bits())
            }
            Input::RoundedBf16 => {
                pair(bf16::from_f32(size(any)).to_bits(), bf16::from_f32(size(any >> 16)).to_bits())
            }
        }
    }
}

/// Zeros, infinities, NaNs, the ends of ranges.
const SPECIAL: [f32; 16] = [
    0.0,
    -0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    -f32::NAN,
    f32::MIN_POSITIVE,
    f32::MAX,
    1.0e-45,
    65504.0,
    65519.996,
    65520.0,
    6.1035156e-5,
    2.9802322e-8,
    2.980233e-8,
    -1.0,
];

/// A float: special, of any bits, or of 16 bits' range and as often as not halfway between two of them.
fn float(index: usize, any: u32) -> u32 {
    let exponent = (101 + any % 44) << 23;
    let sign = any & 0x8000_0000;
    match index % 4 {
        _ if index < SPECIAL.len() => SPECIAL[index].to_bits(),
        0 => any,
        1 => sign | exponent | (any >> 4 & 0x7f_ffff),
        2 => sign | exponent | (any >> 4 & 0x7f_0000) | 0x8000,
        _ => sign | exponent | (any >> 4 & 0x7f_e000) | 0x1000,
    }
}

/// Splitmix's finish: every bit depends on every bit of `index`.
fn scattered(index: usize) -> u32 {
    let mut z = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) as u32
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    bytes.chunks_exact(4).map(word).collect()
}
