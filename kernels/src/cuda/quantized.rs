//! How a quantized row lies in device memory: codes in one plane, scales in another (quantized.cuh).
//!
//! Rows come from [`crate::quantize`] while a model loads.

use crate::weight_format::{BLOCK, Quantization};

/// What scales of fp8 are multiplied by: kernels widen codes to 2⁻⁸ of their value.
const FP8_WIDENED: f32 = 256.0;

/// Bytes of a row's codes, in whole pieces of 16.
pub(crate) fn code_bytes(quantization: Quantization, k: usize) -> usize {
    match quantization {
        Quantization::Q8_0 => k.next_multiple_of(BLOCK),
        Quantization::Q4_0 => k.next_multiple_of(BLOCK) / 2,
        Quantization::Fp8 => k.next_multiple_of(16),
    }
}

/// Scales of a row of so many columns, padded to four, which one copy of a kernel brings.
pub(crate) fn padded_scales(k: usize) -> usize {
    k.div_ceil(BLOCK).next_multiple_of(4)
}

/// Bytes of a row's scales.
pub(crate) fn scale_bytes(quantization: Quantization, k: usize) -> usize {
    match quantization {
        Quantization::Q8_0 | Quantization::Q4_0 => padded_scales(k) * 2,
        Quantization::Fp8 => 4,
    }
}

/// Places a row of [`crate::quantize`] where kernels look for it. The places hold [`code_bytes`] and
/// [`scale_bytes`]; what pads them is left as it is.
pub(crate) fn place_row(
    quantization: Quantization,
    row: &[u8],
    codes: &mut [u8],
    scales: &mut [u8],
) {
    if quantization == Quantization::Fp8 {
        let (scale, values) = row.split_at(4);
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]) * FP8_WIDENED;
        scales.copy_from_slice(&scale.to_le_bytes());
        codes[..values.len()].copy_from_slice(values);
        return;
    }
    let block_bytes = quantization.row_bytes(BLOCK);
    let places = codes.chunks_exact_mut(block_bytes - 2).zip(scales.chunks_exact_mut(2));
    for (block, (codes, scale)) in row.chunks_exact(block_bytes).zip(places) {
        scale.copy_from_slice(&block[..2]);
        codes.copy_from_slice(&block[2..]);
    }
}
