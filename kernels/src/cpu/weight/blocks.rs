//! Where quantized rows lie in panels: quads of k, so that a lane's 32-bit word is what one dot of
//! bytes takes; two blocks a step, so that a step is a whole number of cache lines.
//!
//! ```text
//! q8_0 step:  2 blocks of [8 quads][16 lanes][4]  codes + 128, unsigned
//!             [2 blocks][16 lanes]                scales, f16
//! q4_0 step:  2 blocks of [4 quads][16 lanes][4]  below k = 4 quad + i, above k + 16, codes 0..=15
//!             [2 blocks][16 lanes]                scales, f16
//! fp8 panel:  [16 lanes] f32 scales · 2⁸, then [K][16 lanes] codes
//! ```
//! What pads K, and a panel's lanes beyond N, has scale zero.

use half::f16;

use super::PANEL;
use crate::quantize::e4m3_value;
use crate::weight_format::{BLOCK, Quantization};

/// Blocks of a step.
pub(crate) const STEP_BLOCKS: usize = 2;
/// Elements of k of a step.
pub(crate) const STEP_K: usize = STEP_BLOCKS * BLOCK;
/// Bytes of a block's codes, all lanes.
pub(crate) const Q8_BLOCK_BYTES: usize = BLOCK * PANEL;
/// Bytes of a block's codes, all lanes.
pub(crate) const Q4_BLOCK_BYTES: usize = BLOCK / 2 * PANEL;
/// Bytes of a step's scales.
const SCALES_BYTES: usize = STEP_BLOCKS * PANEL * 2;
/// Bytes of a step.
pub(crate) const Q8_STEP_BYTES: usize = STEP_BLOCKS * Q8_BLOCK_BYTES + SCALES_BYTES;
/// Bytes of a step.
pub(crate) const Q4_STEP_BYTES: usize = STEP_BLOCKS * Q4_BLOCK_BYTES + SCALES_BYTES;
/// Bytes of a panel before its codes.
pub(crate) const FP8_HEAD_BYTES: usize = PANEL * 4;

/// What lanes' scales of fp8 are multiplied by: codes are widened to 2⁻⁸ of their value.
const FP8_WIDENED: f32 = 256.0;
/// Added to codes of q8_0, so that they are unsigned.
const Q8_OFFSET: u8 = 0x80;

/// Sizes of a format in blocks.
#[derive(Clone, Copy)]
struct Sizes {
    /// A block of [`crate::quantize`], and of a panel for all lanes.
    row_block: usize,
    panel_block: usize,
    step: usize,
}

fn sizes(quantization: Quantization) -> Sizes {
    let (panel_block, step) = match quantization {
        Quantization::Q8_0 => (Q8_BLOCK_BYTES, Q8_STEP_BYTES),
        _ => (Q4_BLOCK_BYTES, Q4_STEP_BYTES),
    };
    Sizes { row_block: quantization.row_bytes(BLOCK), panel_block, step }
}

/// Where block `index` of a row begins in its panel: its codes, and this lane's scale.
fn block_at(sizes: Sizes, index: usize, lane: usize) -> (usize, usize) {
    let (step, within) = (index / STEP_BLOCKS * sizes.step, index % STEP_BLOCKS);
    let scales = step + STEP_BLOCKS * sizes.panel_block;
    (step + within * sizes.panel_block, scales + (within * PANEL + lane) * 2)
}

/// Places a row that [`crate::quantize::quantize_row`] made into a lane.
pub(super) fn place_row(quantization: Quantization, row: &[u8], lane: usize, panel: &mut [u8]) {
    if quantization == Quantization::Fp8 {
        let (scale, codes) = row.split_at(4);
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]) * FP8_WIDENED;
        panel[lane * 4..lane * 4 + 4].copy_from_slice(&scale.to_ne_bytes());
        let to = panel[FP8_HEAD_BYTES + lane..].iter_mut().step_by(PANEL);
        to.zip(codes).for_each(|(to, code)| *to = *code);
        return;
    }
    let sizes = sizes(quantization);
    let offset = if quantization == Quantization::Q8_0 { Q8_OFFSET } else { 0 };
    for (index, block) in row.chunks_exact(sizes.row_block).enumerate() {
        let (codes, scale) = block_at(sizes, index, lane);
        let stored = f16::from_le_bytes([block[0], block[1]]);
        panel[scale..scale + 2].copy_from_slice(&stored.to_ne_bytes());
        for (quad, bytes) in block[2..].chunks_exact(4).enumerate() {
            let at = codes + (quad * PANEL + lane) * 4;
            for (to, byte) in panel[at..at + 4].iter_mut().zip(bytes) {
                *to = byte ^ offset;
            }
        }
    }
}

/// The values of a lane, each rounded once to f32.
pub(super) fn read_lane(quantization: Quantization, panel: &[u8], lane: usize, row: &mut [f32]) {
    let half = |at: usize| f16::from_ne_bytes([panel[at], panel[at + 1]]).to_f32();
    if quantization == Quantization::Fp8 {
        let scale = &panel[lane * 4..];
        let scale = f32::from_ne_bytes([scale[0], scale[1], scale[2], scale[3]]) / FP8_WIDENED;
        let codes = panel[FP8_HEAD_BYTES + lane..].iter().step_by(PANEL);
        row.iter_mut().zip(codes).for_each(|(value, code)| *value = e4m3_value(*code) * scale);
        return;
    }
    let sizes = sizes(quantization);
    for (index, values) in row.chunks_mut(BLOCK).enumerate() {
        let (codes, scale) = block_at(sizes, index, lane);
        let scale = half(scale);
        let byte = |i: usize| panel[codes + (i / 4 * PANEL + lane) * 4 + i % 4];
        for (i, value) in values.iter_mut().enumerate() {
            let code = match quantization {
                Quantization::Q8_0 => (byte(i) ^ Q8_OFFSET).cast_signed(),
                _ => (byte(i % 16) >> (i / 16 * 4) & 15).cast_signed() - 8,
            };
            *value = f32::from(code) * scale;
        }
    }
}
