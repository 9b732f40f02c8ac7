//! `linear`: launches of linear.cu and linear_tiled.cu.
//!
//! Which one is `linear_choice`'s to say, and `products`' to do.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::memory::{CudaTensor, CudaVector, CudaWeight};
use crate::cuda::program::CudaProgram;
use crate::cuda::source::{LINEAR, LINEAR_TILED};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::ops::{self, Activation, Epilogue};
use crate::shapes::MatrixShape;
use crate::weight_format::WeightFormat;

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

const WARPS: u32 = 4;
const THREADS: u32 = WARPS * 32;
/// Blocks of a grid along y.
const GRID_MAX: u32 = 65_535;
/// Weight rows of a block.
const BLOCK_COLS: u32 = WARPS * 2;

/// Shared memory for the norm of a row: a float for each of its 16 warps.
pub(crate) const NORM_BYTES: usize = 16 * 4;

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

    /// Refuses a weight of more rows than the largest grid computes. For programs, before they run.
    pub(crate) fn check(weight: &CudaWeight) -> Result<(), KernelError> {
        let (n, most) = (weight.rows(), (GRID_MAX * BLOCK_COLS) as usize);
        // Blocks of quantized products take several turns.
        if n <= most || matches!(weight.format(), WeightFormat::Quantized(_)) {
            return Ok(());
        }
        let reason = format!("a linear of {n} columns; a GPU's kernels compute {most} at most");
        Err(KernelError::Unsupported(reason))
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

    /// Multiplies a few rows at a time with a weight of any format. The device has so many
    /// multiprocessors.
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh says for its rows.
    pub(crate) unsafe fn launch_few(
        &self,
        driver: &dyn Driver,
        format: WeightFormat,
        multiprocessors: u32,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe {
            match format {
                WeightFormat::Plain(format) => self.launch_rows(driver, format),
                WeightFormat::Quantized(quantization) => {
                    self.launch_quantized_rows(driver, quantization, multiprocessors)
                }
            }
        }
    }

    /// Multiplies a few rows at a time with a weight of `format`. The order of sums is one for every
    /// number of rows.
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh says for its rows.
    pub(crate) unsafe fn launch_rows(
        &self,
        driver: &dyn Driver,
        format: DType,
    ) -> Result<(), KernelError> {
        // What rows in shared memory cost.
        let element = if format == DType::Bf16 { 2 } else { 4 };
        let row_bytes = self.stride as usize * element + NORM_BYTES;
        let room = SHARED_BYTES_MAX.min(driver.shared_bytes_max());
        let fitting = (room / row_bytes) as u32;
        let most = if self.experts == DevicePointer::NULL { fitting } else { 1 };
        let variants = variants(format);
        let wanted = variants.iter().find(|(rows, _)| *rows >= self.rows);
        let (rows, name) = wanted
            .filter(|(rows, _)| *rows <= most)
            .or_else(|| variants.iter().rev().find(|(rows, _)| *rows <= most))
            .copied()
            .ok_or_else(|| too_wide(self.k))?;
        let blocks = [self.rows.div_ceil(rows), self.n.div_ceil(BLOCK_COLS), 1];
        let grid = Grid { blocks, shared_bytes: rows as usize * row_bytes };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &Kernel::new(&LINEAR, name, THREADS), grid, self) }
    }

    /// Multiplies with one f32 weight, by tiles.
    ///
    /// # Safety
    /// As [`Self::launch_rows`].
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

/// Shared memory that a block may take so that two of them fit an SM.
const SHARED_BYTES_MAX: usize = 112 << 10;

/// Kernels by the rows that they compute at once, ascending.
fn variants(format: DType) -> [(u32, &'static str); 4] {
    match format {
        DType::F32 => {
            [(1, "linear_f32_1"), (2, "linear_f32_2"), (4, "linear_f32_4"), (8, "linear_f32_8")]
        }
        DType::Bf16 => {
            [(1, "linear_bf16_1"), (2, "linear_bf16_2"), (4, "linear_bf16_4"), (8, "linear_bf16_8")]
        }
        DType::F16 => {
            [(1, "linear_f16_1"), (2, "linear_f16_2"), (4, "linear_f16_4"), (8, "linear_f16_8")]
        }
    }
}

fn too_wide(k: u32) -> KernelError {
    KernelError::Unsupported(format!("a linear over {k} columns; a block's memory holds fewer"))
}
