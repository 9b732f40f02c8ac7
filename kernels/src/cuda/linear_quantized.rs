//! `linear` of few rows with quantized weights: launches of linear_quantized.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear::{Linear, NORM_BYTES};
use crate::cuda::quantized::code_bytes;
use crate::cuda::source::LINEAR_QUANTIZED;
use crate::error::KernelError;
use crate::weight_format::{BLOCK, Quantization};

const WARPS: u32 = 4;
const THREADS: u32 = WARPS * 32;
/// Weight rows that a block takes at a time.
const BLOCK_COLS: u32 = WARPS * 2;
/// Blocks of a multiprocessor: enough warps to have much of a weight under way, and few enough blocks
/// that bringing rows of x to each costs little.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// Shared memory that a block may take so that two of them fit an SM.
const SHARED_BYTES_MAX: usize = 112 << 10;

impl Linear {
    /// Multiplies a few rows at a time with a quantized weight. The order of sums is one for every
    /// number of rows and blocks. The device has so many multiprocessors.
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh and quantized.cuh say for its rows.
    pub(crate) unsafe fn launch_quantized_rows(
        &self,
        driver: &dyn Driver,
        quantization: Quantization,
        multiprocessors: u32,
    ) -> Result<(), KernelError> {
        let row_bytes = shared_row_bytes(quantization, self.k as usize);
        let fitting = (SHARED_BYTES_MAX / row_bytes) as u32;
        let most = if self.experts == DevicePointer::NULL { fitting } else { 1 };
        let variants = variants(quantization);
        let wanted = variants.iter().find(|(rows, _)| *rows >= self.rows);
        let (rows, name) = wanted
            .filter(|(rows, _)| *rows <= most)
            .or_else(|| variants.iter().rev().find(|(rows, _)| *rows <= most))
            .copied()
            .ok_or_else(|| too_wide(self.k))?;
        let at_once = multiprocessors.saturating_mul(BLOCKS_PER_MULTIPROCESSOR).max(1);
        let across = self.n.div_ceil(BLOCK_COLS).min(at_once);
        let blocks = [across, self.rows.div_ceil(rows), 1];
        let grid = Grid { blocks, shared_bytes: rows as usize * row_bytes };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &Kernel::new(&LINEAR_QUANTIZED, name, THREADS), grid, self) }
    }
}

/// Shared memory of a row of x: bytes with a scale and a start a block, or f32; and for its norm.
fn shared_row_bytes(quantization: Quantization, k: usize) -> usize {
    NORM_BYTES
        + match quantization {
            Quantization::Q8_0 | Quantization::Q4_0 => k.div_ceil(BLOCK) * (BLOCK + 8),
            Quantization::Fp8 => code_bytes(quantization, k) * 4,
        }
}

/// Kernels by the rows that they compute at once, ascending.
fn variants(quantization: Quantization) -> [(u32, &'static str); 3] {
    match quantization {
        Quantization::Q8_0 => [(1, "linear_q8_0_1"), (2, "linear_q8_0_2"), (4, "linear_q8_0_4")],
        Quantization::Q4_0 => [(1, "linear_q4_0_1"), (2, "linear_q4_0_2"), (4, "linear_q4_0_4")],
        Quantization::Fp8 => [(1, "linear_fp8_1"), (2, "linear_fp8_2"), (4, "linear_fp8_4")],
    }
}

fn too_wide(k: u32) -> KernelError {
    KernelError::Unsupported(format!("a linear over {k} columns; a block's memory holds fewer"))
}
