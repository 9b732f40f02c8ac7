//! Packing: rows of a checkpoint to lanes of panels, while a model loads.
//!
//! Panels are filled in parallel. A value is rounded only where the format is narrower than the
//! source, which the caller chose; otherwise its bits are copied.

use half::{bf16, f16};

use super::{PANEL, Packed, Shape};
use crate::dtype::{DType, HostTensor};
use crate::ops::Stacking;
use crate::stacking::source_row;

impl Packed {
    /// Row n of the matrix is row n of the stacked parts.
    pub(super) fn fill_expert(
        &mut self,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) {
        let shape = self.shape;
        self.fill_lanes(expert, |n, lane, panel| {
            let (part, row) = source_row(parts, stacking, n);
            copy_row(shape, part, row, lane, panel);
        });
    }

    /// Writes the value of every (row, column).
    #[cfg(test)]
    pub(super) fn fill(&mut self, expert: usize, value: impl Fn(usize, usize) -> f32 + Sync) {
        let shape = self.shape;
        self.fill_lanes(expert, |n, lane, panel| {
            for k in 0..shape.k {
                store(shape, k, lane, value(n, k), panel);
            }
        });
    }

    /// Calls `fill(row, lane, panel)` for each row of an expert, panels in parallel.
    fn fill_lanes(&mut self, expert: usize, fill: impl Fn(usize, usize, &mut [u8]) + Sync) {
        use rayon::prelude::*;
        let (size, panels) = (self.shape.panel_bytes(), self.shape.panels());
        let all = &mut self.data.as_mut_slice::<u8>()[expert * size * panels..];
        all.par_chunks_exact_mut(size).take(panels).enumerate().for_each(|(panel, bytes)| {
            for lane in 0..PANEL.min(self.shape.n - panel * PANEL) {
                fill(panel * PANEL + lane, lane, bytes);
            }
        });
    }
}

/// Copies a row of `part` to a lane of a panel, word by word where the type stays.
fn copy_row(shape: Shape, part: HostTensor<'_>, row: usize, lane: usize, panel: &mut [u8]) {
    if part.dtype != shape.format {
        for k in 0..shape.k {
            store(shape, k, lane, part.at(row, k), panel);
        }
        return;
    }
    let size = shape.format.bytes();
    let words = part.bytes[row * shape.k * size..(row + 1) * shape.k * size].chunks_exact(size);
    for (k, word) in words.enumerate() {
        let at = shape.element(k, lane) * size;
        let to = &mut panel[at..at + size];
        to.copy_from_slice(word);
        // A checkpoint is little-endian, packed weights are in the machine's order.
        if cfg!(target_endian = "big") {
            to.reverse();
        }
    }
}

/// Writes one element, rounding to the format where it is narrower (nearest even).
fn store(shape: Shape, k: usize, lane: usize, value: f32, panel: &mut [u8]) {
    let at = shape.element(k, lane) * shape.format.bytes();
    let to = &mut panel[at..at + shape.format.bytes()];
    match shape.format {
        DType::F32 => to.copy_from_slice(&value.to_ne_bytes()),
        DType::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_ne_bytes()),
        DType::F16 => to.copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
    }
}
