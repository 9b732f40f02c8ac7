//! `linear`: what all products with a weight are told, and launches of linear_tiled.cu.
//!
//! Which kernel it is is `linear_choice`'s to say, and `products`' to do.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::memory::{CudaTensor, CudaVector, CudaWeight};
use crate::cuda::program::CudaProgram;
use crate::cuda::source::LINEAR_TILED;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{self, Activation, Epilogue};
use crate::shapes::MatrixShape;

/// Mirrors `Linear` of linear_epilogue.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Linear {
    pub(crate) x: DevicePointer,
    pub(crate) weight: DevicePointer,
    /// Of a quantized weight, whose stride is that of `quantized::code_bytes`.
    pub(crate) scales: DevicePointer,
    pub(crate) experts: DevicePointer,
    /// Of a norm that rows pass first; null: none. For [`Linear::launch_few`] alone.
    pub(crate) norm: DevicePointer,
    pub(crate) bias: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) rows: u32,
    pub(crate) rows_per_x: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) stride: u32,
    pub(crate) epilogue: u32,
    pub(crate) activation: u32,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
    pub(crate) eps: f32,
}

/// Elements from a row of a weight to the next: whole pieces of 16 bytes.
pub(crate) fn stride_of(k: usize, format: DType) -> usize {
    k.next_multiple_of(16 / format.bytes())
}

impl Linear {
    /// Numbers of epilogues, as linear_epilogue.cuh has them.
    pub(crate) const STORE: u32 = 0;
    pub(crate) const ADD: u32 = 1;
    const GLU: u32 = 2;
    const SCALE: u32 = 3;

    /// `rows` rows of `x` times a weight `[n, k]` of `format`: no bias, one matrix, stored in `out`.
    pub(crate) fn plain(
        [x, weight, out]: [DevicePointer; 3],
        rows: usize,
        (n, k): (usize, usize),
        format: DType,
    ) -> Self {
        Linear {
            x,
            weight,
            scales: DevicePointer::NULL,
            experts: DevicePointer::NULL,
            norm: DevicePointer::NULL,
            bias: DevicePointer::NULL,
            out,
            rows: rows as u32,
            rows_per_x: 1,
            n: n as u32,
            k: k as u32,
            stride: stride_of(k, format) as u32,
            epilogue: Self::STORE,
            activation: 0,
            scale: 1.0,
            soft_cap: 0.0,
            eps: 0.0,
        }
    }

    /// `rows` rows of `x` times a weight, stored in `out`.
    pub(crate) fn with([x, out]: [&CudaTensor; 2], weight: &CudaWeight, rows: u32) -> Self {
        let pointers = [x.pointer(), weight.pointer(), out.pointer()];
        let shape = (weight.rows(), weight.cols());
        let plain = Self::plain(pointers, rows as usize, shape, DType::F32);
        Linear { scales: weight.scales(), stride: weight.stride() as u32, ..plain }
    }

    /// A product as it was recorded, of `rows` rows.
    pub(crate) fn recorded(op: &ops::Linear<CudaProgram>, rows: u32) -> Self {
        let bias = op.bias.as_ref().map_or(DevicePointer::NULL, CudaVector::pointer);
        let linear = Self::with([&op.x, &op.out], &op.weight, rows);
        Linear { bias, ..linear }.with_epilogue(op.epilogue)
    }

    /// Fills in what becomes of results of a plain product.
    pub(crate) fn with_epilogue(self, epilogue: Epilogue) -> Self {
        match epilogue {
            Epilogue::Store => self,
            Epilogue::Add => Linear { epilogue: Self::ADD, ..self },
            Epilogue::Glu(activation) => {
                let activation = match activation {
                    Activation::Silu => 0,
                    Activation::GeluTanh => 1,
                    Activation::Gelu => 2,
                };
                Linear { epilogue: Self::GLU, activation, ..self }
            }
            Epilogue::Scale { scale, soft_cap } => {
                Linear { epilogue: Self::SCALE, scale, soft_cap: soft_cap.unwrap_or(0.0), ..self }
            }
        }
    }

    /// Multiplies with one f32 weight, by tiles.
    ///
    /// # Safety
    /// As [`Self::launch_few`].
    pub(crate) unsafe fn launch_tiled(&self, driver: &dyn Driver) -> Result<(), KernelError> {
        let blocks = [self.rows.div_ceil(TILE), self.n.div_ceil(TILE), 1];
        let grid = Grid { blocks, shared_bytes: TILED_SHARED_BYTES };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &Kernel::new(&LINEAR_TILED, "linear_tiled_f32", 256), grid, self) }
    }
}

/// Rows and columns of a tile of linear_tiled.cu.
const TILE: u32 = 64;
/// Sixteen k of rows and of columns, with room that sets them apart.
const TILED_SHARED_BYTES: usize = 2 * 16 * (64 + 4) * 4;
