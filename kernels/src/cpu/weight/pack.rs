//! Packing: rows of a checkpoint to lanes of panels, while a model loads.
//!
//! Panels are filled in parallel, a row at a time. A plain value is rounded only where the format is
//! narrower than the source, which the caller chose; otherwise its bits are copied. A quantized row
//! is made by [`crate::quantize`], and its bytes are placed here.

use half::{bf16, f16};

use super::{PANEL, Packed, blocks, element};
use crate::dtype::{DType, HostTensor};
use crate::error::KernelError;
use crate::ops::Stacking;
use crate::quantize::quantize_row;
use crate::stacking::source_row;
use crate::weight_format::WeightFormat;

impl Packed {
    /// Row n of the matrix is row n of the stacked parts.
    pub(super) fn fill_expert(
        &mut self,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) -> Result<(), KernelError> {
        let k = self.shape.k;
        match self.shape.format {
            WeightFormat::Plain(dtype) => {
                let copy = |(): &mut (), n, lane, panel: &mut [u8]| {
                    let (part, row) = source_row(parts, stacking, n);
                    copy_row(dtype, parts[part], row, lane, panel);
                    Ok(())
                };
                self.fill_lanes(expert, || (), copy)
            }
            WeightFormat::Quantized(quantization) => {
                let buffers = || (vec![0.0; k], vec![0; quantization.row_bytes(k)]);
                let place = |buffers: &mut (Vec<f32>, Vec<u8>), n, lane, panel: &mut [u8]| {
                    let (values, bytes) = buffers;
                    let (part, row) = source_row(parts, stacking, n);
                    parts[part].read_row(row, values);
                    quantize_row(quantization, values, bytes)
                        .map_err(|refused| refused.in_row(part, row))?;
                    blocks::place_row(quantization, bytes, lane, panel);
                    Ok(())
                };
                self.fill_lanes(expert, buffers, place)
            }
        }
    }

    /// Calls `fill(buffers, row, lane, panel)` for each row of an expert, panels in parallel.
    fn fill_lanes<B>(
        &mut self,
        expert: usize,
        buffers: impl Fn() -> B + Sync + Send,
        fill: impl Fn(&mut B, usize, usize, &mut [u8]) -> Result<(), KernelError> + Sync + Send,
    ) -> Result<(), KernelError> {
        use rayon::prelude::*;
        let (size, panels) = (self.shape.panel_bytes(), self.shape.panels());
        let n = self.shape.n;
        let all = &mut self.data.as_mut_slice::<u8>()[expert * size * panels..];
        all.par_chunks_exact_mut(size).take(panels).enumerate().try_for_each_init(
            buffers,
            |buffers, (panel, bytes)| {
                let mut lanes = 0..PANEL.min(n - panel * PANEL);
                lanes.try_for_each(|lane| fill(buffers, panel * PANEL + lane, lane, bytes))
            },
        )
    }
}

/// Copies a row of `part` to a lane of a panel, word by word where the type stays.
fn copy_row(dtype: DType, part: HostTensor<'_>, row: usize, lane: usize, panel: &mut [u8]) {
    if part.dtype != dtype {
        for k in 0..part.cols {
            store(dtype, k, lane, part.at(row, k), panel);
        }
        return;
    }
    let size = dtype.bytes();
    let words = part.bytes[row * part.cols * size..(row + 1) * part.cols * size].chunks_exact(size);
    for (k, word) in words.enumerate() {
        let at = element(dtype, k, lane) * size;
        let to = &mut panel[at..at + size];
        to.copy_from_slice(word);
        // A checkpoint is little-endian, packed weights are in the machine's order.
        if cfg!(target_endian = "big") {
            to.reverse();
        }
    }
}

/// Writes one element, rounding to the type where it is narrower (nearest even).
fn store(dtype: DType, k: usize, lane: usize, value: f32, panel: &mut [u8]) {
    let at = element(dtype, k, lane) * dtype.bytes();
    let to = &mut panel[at..at + dtype.bytes()];
    match dtype {
        DType::F32 => to.copy_from_slice(&value.to_ne_bytes()),
        DType::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_ne_bytes()),
        DType::F16 => to.copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
    }
}
