//! The left operand of a product: f32 rows as they are, or made once what the weight's format wants.
//!
//! A row that bf16 weights meet is rounded, and kept as its kernel reads it: bf16 pairs in 32-bit
//! words where the instruction set dots pairs, else f32 values that bf16 can hold. A row that weights
//! in blocks meet is quantized to bytes (layout: `blocks`). All start at a cache line.

use std::ops::Range;

use crate::cpu::buffer::{Activation, LANES_MAX};
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::linear::blocks::{QUADS, SCALES, STARTS, STEP_WORDS};
use crate::cpu::simd::Simd;
use crate::cpu::weight::{STEP_BLOCKS, STEP_K};
use crate::dtype::DType;
use crate::quantize::{Q4_ZERO, Q8_MAX};
use crate::weight_format::{BLOCK, Quantization, WeightFormat};

/// Whether rows are made anew before they meet weights of `format`.
pub(crate) fn prepares(format: WeightFormat) -> bool {
    match format {
        WeightFormat::Plain(dtype) => dtype == DType::Bf16,
        WeightFormat::Quantized(quantization) => quantization.quantizes_rows(),
    }
}

/// Scratch bytes of `rows` prepared rows of `cols` elements.
pub(crate) fn prepared_bytes(format: WeightFormat, rows: usize, cols: usize) -> usize {
    rows * PreparedRows::stride_of(format, cols) * 4
}

/// Rows in 32-bit words.
#[derive(Clone, Copy)]
pub(crate) struct PreparedRows {
    start: *mut u32,
    stride: usize,
}

impl PreparedRows {
    /// 32-bit words from a prepared row to the next.
    pub(crate) fn stride_of(format: WeightFormat, cols: usize) -> usize {
        let words = match format {
            WeightFormat::Quantized(quantization) if quantization.quantizes_rows() => {
                cols.div_ceil(STEP_K) * STEP_WORDS
            }
            _ => cols,
        };
        words.next_multiple_of(LANES_MAX)
    }

    /// The activation itself.
    pub(crate) fn in_place(x: &Activation) -> Self {
        PreparedRows { start: x.as_ptr().cast(), stride: x.stride() }
    }

    /// Rows to be prepared in scratch.
    pub(crate) fn in_scratch(scratch: *mut u8, format: WeightFormat, cols: usize) -> Self {
        PreparedRows { start: scratch.cast(), stride: Self::stride_of(format, cols) }
    }

    /// Bytes from a row to the next.
    pub(crate) fn row_bytes(&self) -> usize {
        self.stride * 4
    }

    /// The rows from `first` on.
    pub(crate) fn starting_at(self, first: usize) -> Self {
        PreparedRows { start: self.start.wrapping_add(first * self.stride), ..self }
    }

    /// First word of a row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> *const u32 {
        self.start.wrapping_add(row * self.stride)
    }

    /// Makes rows of `x` what weights of `format` want.
    ///
    /// # Safety
    /// The scratch holds these rows and no other worker touches them; nobody writes `x`.
    pub(crate) unsafe fn prepare(
        &self,
        isa: Isa,
        format: WeightFormat,
        x: &Activation,
        rows: Range<usize>,
    ) {
        for row in rows {
            // SAFETY: the caller's promise; the row is `stride` words long.
            let (from, to) = unsafe {
                let to = std::slice::from_raw_parts_mut(self.row(row).cast_mut(), self.stride);
                (x.row(row), to)
            };
            match format {
                WeightFormat::Plain(_) => isa.dispatch(RoundRow { from, to }),
                WeightFormat::Quantized(quantization) => {
                    isa.dispatch(QuantizeRow { from: &from[..x.cols()], to, quantization });
                }
            }
        }
    }
}

/// Rounds one row.
struct RoundRow<'a> {
    from: &'a [f32],
    to: &'a mut [u32],
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        if S::DOTS_PAIRS {
            for (pair, to) in self.from.chunks_exact(2).zip(self.to) {
                *to = (round(pair[0]) >> 16) | round(pair[1]);
            }
        } else {
            for (&value, to) in self.from.iter().zip(self.to) {
                *to = round(value);
            }
        }
    }
}

/// Quantizes one row to signed bytes, 32 to a scale.
struct QuantizeRow<'a> {
    from: &'a [f32],
    to: &'a mut [u32],
    quantization: Quantization,
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // How far the kernel's weights lie above their values.
        let offset = match self.quantization {
            Quantization::Q4_0 => Q4_ZERO as i32,
            _ => S::OFFSET_LEFT,
        };
        for (from, to) in self.from.chunks(STEP_K).zip(self.to.chunks_exact_mut(STEP_WORDS)) {
            let mut values = [0.0f32; STEP_K];
            values[..from.len()].copy_from_slice(from);
            for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (scale, codes) = quantize_block(values);
                let sum: i32 = codes.iter().sum();
                for (quad, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                    let bytes = codes.map(|code| code as u8);
                    to[block * QUADS + quad] = u32::from_le_bytes(bytes);
                }
                to[SCALES + block] = scale.to_bits();
                to[STARTS + block] = (-offset * sum).cast_unsigned();
            }
        }
    }
}

const _: () = assert!(STEP_K == STEP_BLOCKS * BLOCK);

/// `scale = max|x| / 127` and `round(x / scale)`, ties to even. A value that is not finite makes the
/// scale NaN, which no sum survives.
#[inline(always)]
fn quantize_block(values: &[f32; BLOCK]) -> (f32, [i32; BLOCK]) {
    // As integers, magnitudes are ordered as their numbers are, and NaN is above all.
    let most = values.iter().fold(0u32, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
    if most >= f32::INFINITY.to_bits() {
        return (f32::NAN, [0; BLOCK]);
    }
    let scale = f32::from_bits(most) / Q8_MAX;
    if scale == 0.0 {
        return (0.0, [0; BLOCK]);
    }
    let code = |value: f32| {
        // A subnormal scale may be too small by half of itself.
        let steps = (value / scale).clamp(-Q8_MAX, Q8_MAX);
        // Adding 1.5 · 2²³ rounds to nearest even and leaves the integer in the lower bits.
        (steps + 12_582_912.0).to_bits().cast_signed() - 0x4b40_0000
    };
    (scale, values.map(code))
}

/// The nearest bf16 (ties to even) in the upper half, zeros below. NaN stays NaN.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if value.is_nan() { bits | 0x0040_0000 } else { rounded }) & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_agrees_with_half() {
        let edges =
            [0.0, -0.0, 1.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 1e-45, 1.003_906_3];
        let many = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
        for value in edges.into_iter().chain(many) {
            let want = bf16::from_f32(value);
            let got = bf16::from_bits((round(value) >> 16) as u16);
            assert!(got == want || got.is_nan() && want.is_nan(), "{value} {got} {want}");
        }
    }

    #[test]
    fn quantized_rows_are_those_of_the_float64_statement() {
        use crate::cpu::test_team::noise;
        for exponent in [-149, -146, -140, -126, -20, 0, 100] {
            let size = 2f64.powi(exponent);
            let values: [f32; BLOCK] =
                std::array::from_fn(|i| (f64::from(noise(1, i, 7)) * 100.0 * size) as f32);
            let wide = values.map(f64::from);
            let (scale, codes) = quantize_block(&values);
            let got = codes.map(|code| f64::from(code) * f64::from(scale));
            assert_eq!(got[..], crate::reference::quantized::input(&wide), "{exponent}");
        }
        assert_eq!(quantize_block(&[0.0; BLOCK]), (0.0, [0; BLOCK]));
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let mut values = [1.0; BLOCK];
            values[31] = bad;
            assert!(quantize_block(&values).0.is_nan());
        }
    }
}
