//! `linear` on matrix units: launches of linear_tensor.cu and linear_tensor_f16.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{Cut, Tiling};
use crate::cuda::source::{LINEAR_TENSOR, LINEAR_TENSOR_F16};
use crate::dtype::DType;
use crate::error::KernelError;

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

    /// Multiplies with a weight of `format`, f16 or bf16.
    ///
    /// # Safety
    /// Every pointer has what linear_tile.cuh says for its rows, and this was made for `cut`.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        cut: &Cut,
        format: DType,
    ) -> Result<(), KernelError> {
        let source = if format == DType::F16 { &LINEAR_TENSOR_F16 } else { &LINEAR_TENSOR };
        let kernel = Kernel::new(source, cut.tiling.kernel(format), cut.tiling.threads);
        let chunks = if cut.is_spread { cut.chunks } else { 1 };
        let grid = Grid {
            blocks: [self.row_tiles * self.column_tiles, chunks, 1],
            shared_bytes: cut.shared_bytes(format),
        };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &kernel, grid, self) }
    }
}
