//! The left operand of a product: f32 rows as they are, or rounded to bf16 once.
//!
//! A rounded row is kept as its kernel reads it: bf16 pairs in 32-bit words where the instruction
//! set dots pairs, else f32 values that bf16 can hold. Both start at a cache line.

use std::ops::Range;

use crate::cpu::buffer::{Activation, LANES_MAX};
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::simd::Simd;
use crate::dtype::DType;

/// Whether rows are rounded before they meet weights of `format`.
pub(crate) fn prepares(format: DType) -> bool {
    format == DType::Bf16
}

/// Scratch bytes of `rows` prepared rows of `cols` elements.
pub(crate) fn prepared_bytes(rows: usize, cols: usize) -> usize {
    rows * PreparedRows::stride_of(cols) * 4
}

/// Rows in 32-bit words.
#[derive(Clone, Copy)]
pub(crate) struct PreparedRows {
    start: *mut u32,
    stride: usize,
}

impl PreparedRows {
    /// 32-bit words from a prepared row to the next.
    pub(crate) fn stride_of(cols: usize) -> usize {
        cols.next_multiple_of(LANES_MAX)
    }

    /// The activation itself.
    pub(crate) fn in_place(x: &Activation) -> Self {
        PreparedRows { start: x.as_ptr().cast(), stride: x.stride() }
    }

    /// Rows to be rounded into scratch.
    pub(crate) fn in_scratch(scratch: *mut u8, cols: usize) -> Self {
        PreparedRows { start: scratch.cast(), stride: Self::stride_of(cols) }
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

    /// Rounds rows of `x` to bf16, to nearest even.
    ///
    /// # Safety
    /// The scratch holds these rows and no other worker touches them; nobody writes `x`.
    pub(crate) unsafe fn round_rows(&self, isa: Isa, x: &Activation, rows: Range<usize>) {
        for row in rows {
            // SAFETY: the caller's promise; both rows are `stride` words long.
            let (from, to) = unsafe {
                let to = std::slice::from_raw_parts_mut(self.row(row).cast_mut(), self.stride);
                (x.row(row), to)
            };
            isa.dispatch(RoundRow { from, to });
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
}
