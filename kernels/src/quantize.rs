//! Quantization of weights on the host: one routine, whose rows every device packs.
//!
//! Runs while a model loads, a row at a time. All arithmetic is f32 with single roundings (nearest,
//! ties to even), so that every machine makes the same bytes. A row of K elements becomes:
//!
//! ```text
//! q8_0  blocks of 32 along K:  scale f16, 32 × i8
//!         d = max|x| / 127            scale = f16(d)      q = round(x / scale), within ±127
//!         x ≈ q · scale
//! q4_0  blocks of 32 along K:  scale f16, 16 bytes: element i below, element i + 16 above
//!         d = m / −8, m the first x of the largest |x|    scale = f16(d)
//!         q = round(x / scale) + 8, within 0..=15         x ≈ (q − 8) · scale
//! fp8   scale f32, K × e4m3
//!         scale = max|x| / 448        code = e4m3(x / scale), at most 448, never NaN
//!         x ≈ value(code) · scale
//! ```
//!
//! Numbers are little-endian. The last block is padded with zeros, which are exact in every format.
//! A scale of zero makes every element zero: a block of zeros, or one below the least scale. What a
//! scale loses where f16 is subnormal is at most 2⁻²⁵ times the largest code.

use half::f16;

use crate::error::KernelError;
use crate::weight_format::{BLOCK, Quantization};

/// The largest magnitude of an 8-bit code, of weights and of rows.
pub(crate) const Q8_MAX: f32 = 127.0;
/// The code of zero in four bits.
pub(crate) const Q4_ZERO: f32 = 8.0;
/// The largest finite e4m3.
const FP8_MAX: f32 = 448.0;

/// A value that cannot be quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Unquantizable {
    column: usize,
    value: f32,
    why: &'static str,
}

impl Unquantizable {
    /// The same, of a row of one of the matrices that are packed together.
    pub(crate) fn in_row(self, part: usize, row: usize) -> KernelError {
        let Unquantizable { column, value, why } = self;
        KernelError::Unquantizable { part, row, column, value, why }
    }
}

/// Quantizes a row into [`Quantization::row_bytes`] bytes. Panics if `to` has another length.
///
/// A value that is not finite, or too large for a scale, is an error that names its column.
pub(crate) fn quantize_row(
    quantization: Quantization,
    row: &[f32],
    to: &mut [u8],
) -> Result<(), Unquantizable> {
    assert_eq!(to.len(), quantization.row_bytes(row.len()), "a row's bytes");
    if let Some(column) = row.iter().position(|value| !value.is_finite()) {
        let (value, why) = (row[column], "is not a finite number");
        return Err(Unquantizable { column, value, why });
    }
    match quantization {
        Quantization::Q8_0 => blocks(row, to, 2 + BLOCK, q8_0),
        Quantization::Q4_0 => blocks(row, to, 2 + BLOCK / 2, q4_0),
        Quantization::Fp8 => {
            fp8(row, to);
            Ok(())
        }
    }
}

/// The values that a quantized row stands for, each rounded once to f32.
pub fn dequantize_row(quantization: Quantization, bytes: &[u8], row: &mut [f32]) {
    assert_eq!(bytes.len(), quantization.row_bytes(row.len()), "a row's bytes");
    if quantization == Quantization::Fp8 {
        let (scale, codes) = bytes.split_at(4);
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
        for (value, &code) in row.iter_mut().zip(codes) {
            *value = e4m3_value(code) * scale;
        }
        return;
    }
    let block_bytes = quantization.row_bytes(BLOCK);
    for (values, block) in row.chunks_mut(BLOCK).zip(bytes.chunks_exact(block_bytes)) {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (i, value) in values.iter_mut().enumerate() {
            *value = f32::from(block_code(quantization, &block[2..], i)) * scale;
        }
    }
}

/// The signed code of element `i` of a block, behind its scale.
fn block_code(quantization: Quantization, codes: &[u8], i: usize) -> i8 {
    match quantization {
        Quantization::Q8_0 => codes[i].cast_signed(),
        _ => (codes[i % (BLOCK / 2)] >> (i / (BLOCK / 2) * 4) & 15).cast_signed() - Q4_ZERO as i8,
    }
}

/// Quantizes whole blocks, the last one padded; names the column of what has no scale.
fn blocks(
    row: &[f32],
    to: &mut [u8],
    block_bytes: usize,
    quantize: impl Fn(&[f32; BLOCK], &mut [u8]) -> bool,
) -> Result<(), Unquantizable> {
    let pieces = row.chunks(BLOCK).zip(to.chunks_exact_mut(block_bytes));
    for (index, (piece, to)) in pieces.enumerate() {
        let mut values = [0.0; BLOCK];
        values[..piece.len()].copy_from_slice(piece);
        if !quantize(&values, to) {
            let column = index * BLOCK + largest(&values);
            let (value, why) = (row[column], "is too large for a scale in f16");
            return Err(Unquantizable { column, value, why });
        }
    }
    Ok(())
}

/// Whether there is a scale.
fn q8_0(values: &[f32; BLOCK], to: &mut [u8]) -> bool {
    let scale = store_scale(values[largest(values)].abs() / Q8_MAX, to);
    for (code, &value) in to[2..].iter_mut().zip(values) {
        let steps = if scale == 0.0 { 0.0 } else { (value / scale).round_ties_even() };
        *code = (steps.clamp(-Q8_MAX, Q8_MAX) as i8).cast_unsigned();
    }
    scale.is_finite()
}

/// Whether there is a scale.
fn q4_0(values: &[f32; BLOCK], to: &mut [u8]) -> bool {
    let scale = store_scale(values[largest(values)] / -Q4_ZERO, to);
    let code = |value: f32| {
        let steps = if scale == 0.0 { 0.0 } else { (value / scale).round_ties_even() };
        (steps + Q4_ZERO).clamp(0.0, 15.0) as u8
    };
    for (i, byte) in to[2..].iter_mut().enumerate() {
        *byte = code(values[i]) | code(values[i + BLOCK / 2]) << 4;
    }
    scale.is_finite()
}

/// Rounds a scale to f16 (never −0) and writes it.
fn store_scale(scale: f32, to: &mut [u8]) -> f32 {
    let scale = f16::from_f32(scale) + f16::ZERO;
    to[..2].copy_from_slice(&scale.to_le_bytes());
    scale.to_f32()
}

fn fp8(row: &[f32], to: &mut [u8]) {
    let max = row.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = max / FP8_MAX;
    let (head, codes) = to.split_at_mut(4);
    head.copy_from_slice(&scale.to_le_bytes());
    for (code, &value) in codes.iter_mut().zip(row) {
        *code = if scale == 0.0 { 0 } else { e4m3(value / scale) };
    }
}

/// The nearest e4m3 (ties to even), at most 448 in magnitude.
pub(crate) fn e4m3(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    // Below the least normal number, 2⁻⁶, codes are multiples of 2⁻⁹; the largest one is 2⁻⁶.
    if magnitude < 0.015_625 {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    // Three bits of the fraction stay; a carry runs into the exponent by itself.
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    let code = rounded - ((127 - 7) << 3);
    sign | code.min(0x7e) as u8
}

/// The number of an e4m3 code that is not NaN.
pub fn e4m3_value(code: u8) -> f32 {
    let bits = u32::from(code & 0x7f) << 20;
    let magnitude = match code & 0x78 {
        0 => f32::from(code & 7) / 512.0,
        _ => f32::from_bits(bits + ((127 - 7) << 23)),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The first element of the largest magnitude.
fn largest(values: &[f32; BLOCK]) -> usize {
    let mut at = 0;
    for (i, value) in values.iter().enumerate() {
        if value.abs() > values[at].abs() {
            at = i;
        }
    }
    at
}

#[cfg(test)]
mod tests;
