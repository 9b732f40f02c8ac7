//! Packed weights: panels of sixteen output columns, read once from front to back.
//!
//! ```text
//! W[N, K] → panel p holds outputs 16 p .. 16 p + 16, zero filled beyond N
//!   f32, f16:  [K][16]            element (k, lane)
//!   bf16:      [K / 2][16][2]     pairs of k: one 32-bit word a lane (K padded to 2 with zero)
//!   fp8:       [16] scales · 2⁸, then [K][16] (K padded to 4)
//!   q8_0, q4_0: see `blocks`
//! ```
//! A panel is contiguous, so a worker's contiguous range of panels is one sequential read for one
//! row and for many. Packing happens while a model loads; a packed weight never changes.

mod blocks;
mod pack;

use std::sync::Arc;

use crate::cpu::buffer::AlignedBuffer;
use crate::dtype::{DType, HostTensor};
use crate::error::KernelError;
use crate::ops::Stacking;
use crate::stacking::{refused, stacked_shape};
use crate::weight_format::{Quantization, WeightFormat};

pub(crate) use blocks::{
    FP8_HEAD_BYTES, Q4_BLOCK_BYTES, Q4_STEP_BYTES, Q8_BLOCK_BYTES, Q8_STEP_BYTES, STEP_BLOCKS,
    STEP_K,
};

/// Output columns of a panel.
pub(crate) const PANEL: usize = 16;

/// Packed matrices of one shape, `[E, N, K]`: one for each expert, or one alone. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PackedWeight(Arc<Packed>);

#[derive(Debug)]
struct Packed {
    shape: Shape,
    experts: usize,
    data: AlignedBuffer,
}

/// Numbers of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// N.
    pub(crate) n: usize,
    /// K.
    pub(crate) k: usize,
    /// How the elements are stored.
    pub(crate) format: WeightFormat,
}

impl Shape {
    /// K with its padding.
    pub(crate) fn k_padded(&self) -> usize {
        self.k.next_multiple_of(match self.format {
            WeightFormat::Plain(DType::F32 | DType::F16) => 1,
            WeightFormat::Plain(DType::Bf16) => 2,
            WeightFormat::Quantized(Quantization::Q8_0 | Quantization::Q4_0) => STEP_K,
            // A whole number of cache lines a panel.
            WeightFormat::Quantized(Quantization::Fp8) => 4,
        })
    }

    /// Panels of the matrix.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        let k = self.k_padded();
        match self.format {
            WeightFormat::Plain(dtype) => k * PANEL * dtype.bytes(),
            WeightFormat::Quantized(Quantization::Q8_0) => k / STEP_K * Q8_STEP_BYTES,
            WeightFormat::Quantized(Quantization::Q4_0) => k / STEP_K * Q4_STEP_BYTES,
            WeightFormat::Quantized(Quantization::Fp8) => FP8_HEAD_BYTES + k * PANEL,
        }
    }

    /// Bytes of the whole matrix; `None` when they overflow.
    fn bytes(&self) -> Option<usize> {
        // No format takes more than f32, and padding and head are less than this.
        let k = self.k.checked_add(STEP_K)?;
        k.checked_mul(PANEL * DType::F32.bytes())?.checked_mul(self.panels())?;
        Some(self.panel_bytes() * self.panels())
    }
}

/// Where element (k, lane) lies in a panel of plain elements, in elements.
#[inline(always)]
fn element(dtype: DType, k: usize, lane: usize) -> usize {
    match dtype {
        DType::Bf16 => (k / 2) * 2 * PANEL + lane * 2 + k % 2,
        DType::F32 | DType::F16 => k * PANEL + lane,
    }
}

/// One matrix of packed panels, borrowed by a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    /// N, K, type.
    pub(crate) shape: Shape,
    bytes: &'a [u8],
}

impl<'a> Panels<'a> {
    /// Bytes of panel `index`; of quantized weights, aligned to a cache line.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> &'a [u8] {
        let size = self.shape.panel_bytes();
        &self.bytes[index * size..(index + 1) * size]
    }

    /// The values of row `n` of a quantized matrix, each rounded once to f32.
    pub(crate) fn dequantize(&self, quantization: Quantization, n: usize, row: &mut [f32]) {
        blocks::read_lane(quantization, self.panel(n / PANEL), n % PANEL, row);
    }
}

impl PackedWeight {
    /// Packs `parts` as one matrix.
    pub(crate) fn pack(
        parts: &[HostTensor<'_>],
        stacking: Stacking,
        format: impl Into<WeightFormat>,
    ) -> Result<Self, KernelError> {
        let (n, k) = stacked_shape(parts, stacking)?;
        let mut packed = Packed::zeroed(Shape { n, k, format: format.into() }, 1)?;
        packed.fill_expert(0, parts, stacking)?;
        Ok(PackedWeight(Arc::new(packed)))
    }

    /// Zeros for `experts` matrices of `[n, k]`.
    pub(crate) fn zeroed(
        experts: usize,
        (n, k): (usize, usize),
        format: impl Into<WeightFormat>,
    ) -> Result<Self, KernelError> {
        let format = format.into();
        if experts == 0 || n == 0 || k == 0 {
            return Err(refused("no experts, or empty ones"));
        }
        Ok(PackedWeight(Arc::new(Packed::zeroed(Shape { n, k, format }, experts)?)))
    }

    /// Packs `parts` as the matrix of `expert`, before anybody else has the weight.
    pub(crate) fn pack_expert(
        &mut self,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) -> Result<(), KernelError> {
        let (of, experts) = (self.0.shape, self.0.experts);
        let (n, k) = stacked_shape(parts, stacking)?;
        let shape = Shape { n, k, format: of.format };
        match Arc::get_mut(&mut self.0) {
            Some(packed) if shape == of && expert < experts => {
                packed.fill_expert(expert, parts, stacking)
            }
            Some(_) => {
                Err(refused(format!("expert {expert} of {shape:?} among {experts} of {of:?}")))
            }
            None => Err(refused("experts that are in use already")),
        }
    }

    /// The value of each (expert, row, column), rounded.
    #[cfg(test)]
    pub(crate) fn from_values(
        experts: usize,
        (n, k): (usize, usize),
        format: impl Into<WeightFormat>,
        fill: impl Fn(usize, usize, usize) -> f32,
    ) -> Result<Self, KernelError> {
        let mut weight = Self::zeroed(experts, (n, k), format)?;
        for expert in 0..experts {
            let values = (0..n * k).flat_map(|i| fill(expert, i / k, i % k).to_le_bytes());
            let bytes: Vec<u8> = values.collect();
            let host = HostTensor { dtype: DType::F32, rows: n, cols: k, bytes: &bytes };
            weight.pack_expert(expert, &[host], Stacking::Stack)?;
        }
        Ok(weight)
    }

    /// E, 1 for a matrix alone.
    pub fn num_experts(&self) -> usize {
        self.0.experts
    }

    /// N, output features of a matrix.
    pub fn rows(&self) -> usize {
        self.0.shape.n
    }

    /// K, input features.
    pub fn cols(&self) -> usize {
        self.0.shape.k
    }

    /// How the elements are stored.
    pub fn format(&self) -> WeightFormat {
        self.0.shape.format
    }

    /// The panels of a matrix alone, or of the first expert.
    pub(crate) fn panels(&self) -> Panels<'_> {
        self.expert(0)
    }

    /// The panels of one expert.
    pub(crate) fn expert(&self, expert: usize) -> Panels<'_> {
        self.0.expert(expert)
    }
}

impl Packed {
    fn zeroed(shape: Shape, experts: usize) -> Result<Self, KernelError> {
        let what = || format!("a weight [{experts}, {}, {}]", shape.n, shape.k);
        let Some(bytes) = shape.bytes().and_then(|bytes| bytes.checked_mul(experts)) else {
            return Err(KernelError::OutOfMemory { what: what(), bytes: usize::MAX });
        };
        Ok(Packed { shape, experts, data: AlignedBuffer::zeroed(bytes, &what())? })
    }

    fn expert(&self, expert: usize) -> Panels<'_> {
        let size = self.shape.panel_bytes() * self.shape.panels();
        let bytes = &self.data.as_slice::<u8>()[expert * size..(expert + 1) * size];
        Panels { shape: self.shape, bytes }
    }
}

#[cfg(test)]
mod tests;
