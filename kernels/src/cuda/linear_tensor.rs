//! `linear` on matrix units: launches of linear_tensor.cu, its likes for f16 and fp8, and linear_bytes.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{Cut, Tiling};
use crate::cuda::quantize_rows::ByteRows;
use crate::cuda::source::{
    LINEAR_BYTES, LINEAR_TENSOR, LINEAR_TENSOR_F16, LINEAR_TENSOR_FP8, Source,
};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::weight_format::{Quantization, WeightFormat};

/// Mirrors `TensorLinear` of linear_tile.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct TensorLinear {
    pub(crate) linear: Linear,
    pub(crate) tiles: DevicePointer,
    pub(crate) order: DevicePointer,
    pub(crate) partials: DevicePointer,
    pub(crate) arrivals: DevicePointer,
    pub(crate) chunks: u32,
    pub(crate) row_tiles: u32,
    pub(crate) column_tiles: u32,
}

/// Mirrors `ByteLinear` of linear_bytes.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct ByteLinear {
    tensor: TensorLinear,
    codes: DevicePointer,
    scales: DevicePointer,
}

/// Where spread chunks meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meeting {
    /// Their sums.
    pub(crate) partials: DevicePointer,
    /// Zeros, a word a tile.
    pub(crate) arrivals: DevicePointer,
}

/// Rows by expert, as moe_group.cu leaves them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    /// Rows of the result.
    pub(crate) order: DevicePointer,
    /// `RowTile`s over it.
    pub(crate) tiles: DevicePointer,
    /// How many, empty ones too.
    pub(crate) num_tiles: u32,
}

impl TensorLinear {
    /// The product `linear` of rows as they are, cut by `cut`.
    pub(crate) fn dense(linear: Linear, cut: &Cut, meeting: Meeting) -> Self {
        let partials = if cut.is_spread { meeting.partials } else { DevicePointer::NULL };
        TensorLinear {
            linear,
            tiles: DevicePointer::NULL,
            order: DevicePointer::NULL,
            partials,
            arrivals: meeting.arrivals,
            chunks: cut.chunks,
            row_tiles: linear.rows.div_ceil(cut.tiling.rows),
            column_tiles: linear.n.div_ceil(cut.tiling.columns),
        }
    }

    /// The product of rows in the order of their experts, by tiles of `tiling`.
    pub(crate) fn grouped(linear: Linear, tiling: Tiling, groups: Groups) -> (Self, Cut) {
        let cut = Cut { tiling, chunks: 1, is_spread: false };
        let none = Meeting { partials: DevicePointer::NULL, arrivals: DevicePointer::NULL };
        let Groups { order, tiles, num_tiles } = groups;
        (
            TensorLinear { order, tiles, row_tiles: num_tiles, ..Self::dense(linear, &cut, none) },
            cut,
        )
    }

    /// Multiplies with a weight of `format`: f16, bf16 or fp8.
    ///
    /// # Safety
    /// Every pointer has what linear_tile.cuh says for its rows, and this was made for `cut`.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        cut: &Cut,
        format: WeightFormat,
    ) -> Result<(), KernelError> {
        let source = match format {
            WeightFormat::Plain(DType::F16) => &LINEAR_TENSOR_F16,
            WeightFormat::Quantized(Quantization::Fp8) => &LINEAR_TENSOR_FP8,
            _ => &LINEAR_TENSOR,
        };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &kernel(source, cut, format), self.grid(cut, format), self) }
    }

    /// Multiplies `x`, the rows of x as bytes, with a weight of `format`, in blocks.
    ///
    /// # Safety
    /// As [`Self::launch`], and `x` has the rows of x.
    pub(crate) unsafe fn launch_bytes(
        self,
        driver: &dyn Driver,
        cut: &Cut,
        format: WeightFormat,
        x: ByteRows,
    ) -> Result<(), KernelError> {
        let product = ByteLinear { tensor: self, codes: x.codes, scales: x.scales };
        let kernel = kernel(&LINEAR_BYTES, cut, format);
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &kernel, self.grid(cut, format), &product) }
    }

    fn grid(&self, cut: &Cut, format: WeightFormat) -> Grid {
        let chunks = if cut.is_spread { cut.chunks } else { 1 };
        let blocks = [self.row_tiles * self.column_tiles, chunks, 1];
        Grid { blocks, shared_bytes: cut.shared_bytes(format) }
    }
}

fn kernel<P>(source: &'static Source, cut: &Cut, format: WeightFormat) -> Kernel<P> {
    Kernel::new(source, cut.tiling.kernel(format), cut.tiling.threads)
}
