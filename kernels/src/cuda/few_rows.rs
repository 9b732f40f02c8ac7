//! `linear` of few rows: launches of linear.cu and linear_quantized.cu, as few_rows.cuh reads weights.
//!
//! A block for each multiprocessor keeps rows of x in its shared memory, so how many rows go together is a
//! question of memory: of the card's limit, never of more. Knows nothing of who chose this way.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear::{Linear, stride_of};
use crate::cuda::quantized::code_bytes;
use crate::cuda::source::{LINEAR, LINEAR_QUANTIZED, Source};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::weight_format::{BLOCK, Quantization, WeightFormat};

const WARPS: u32 = 8;
const THREADS: u32 = WARPS * 32;
/// What a lane takes of a weight row at a time, and its warp.
const PIECE_BYTES: usize = 16;
const STEP_BYTES: usize = 32 * PIECE_BYTES;
/// Weight rows whose steps a warp's ring has.
const RING_ROWS: usize = 16;
/// For the norm of a row: a float for each of 16 warps.
const NORM_BYTES: usize = 16 * 4;

impl Linear {
    /// Multiplies a few rows at a time with a weight of any format. The order of sums is one for every
    /// number of rows and blocks. The device has so many multiprocessors.
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh and quantized.cuh say for its rows.
    pub(crate) unsafe fn launch_few(
        &self,
        driver: &dyn Driver,
        format: WeightFormat,
        multiprocessors: u32,
    ) -> Result<(), KernelError> {
        let Linear { rows, n, k, .. } = *self;
        let fitting = rows_at_once(driver.shared_bytes_max(), format, k);
        let most = if self.experts == DevicePointer::NULL { fitting } else { fitting.min(1) };
        let (source, variants) = variants(format);
        let fits = |variant: &&(u32, &'static str)| variant.0 <= most;
        let smallest = variants.iter().filter(fits).find(|variant| variant.0 >= rows);
        let Some(&(at_once, name)) = smallest.or_else(|| variants.iter().rfind(fits)) else {
            let reason = format!("a linear over {k} columns; a block's memory holds fewer");
            return Err(KernelError::Unsupported(reason));
        };
        let groups = rows.div_ceil(at_once);
        // Several groups do not divide the device equally: two blocks share a multiprocessor then, as far
        // as they fit. There may be no row at all.
        let room = multiprocessors.saturating_mul(if groups > 1 { 2 } else { 1 });
        let turns = n.div_ceil(columns(format, at_once));
        let blocks = [groups, (room / groups.max(1)).clamp(1, turns), 1];
        let grid = Grid { blocks, shared_bytes: shared_bytes(format, k as usize, at_once) };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &Kernel::new(source, name, THREADS), grid, self) }
    }
}

/// Rows of `k` columns that go together where a block may have so many bytes of shared memory. 0: not even
/// one does.
pub(crate) fn rows_at_once(shared_bytes_max: usize, format: WeightFormat, k: u32) -> u32 {
    let fits = |rows: &u32| shared_bytes(format, k as usize, *rows) <= shared_bytes_max;
    let rows = variants(format).1.iter().map(|variant| variant.0);
    rows.filter(fits).max().unwrap_or(0)
}

/// Weight rows that a warp takes at a time, for so many rows of x: `columns_of` of few_rows.cuh.
fn columns(format: WeightFormat, rows: u32) -> u32 {
    let much = match format {
        WeightFormat::Plain(DType::F32) => 8,
        WeightFormat::Plain(_) | WeightFormat::Quantized(Quantization::Q8_0) => 4,
        WeightFormat::Quantized(Quantization::Fp8 | Quantization::Q4_0) => 2,
    };
    if rows < much { 2 } else { 4 }
}

/// Shared memory of a block: its warps' rings, and rows of x.
fn shared_bytes(format: WeightFormat, k: usize, rows: u32) -> usize {
    // Bytes of a row of weight, of x for each of them, of scales for a step, and of scales of a row of x.
    let (row_bytes, widened, step_scales, scales) = match format {
        WeightFormat::Plain(dtype) => {
            let widened = if dtype == DType::F16 { 2 } else { 1 };
            (stride_of(k, dtype) * dtype.bytes(), widened, 0, 0)
        }
        WeightFormat::Quantized(quantization) => {
            let (widened, step_scales, scales) = match quantization {
                Quantization::Fp8 => (4, 0, 0),
                Quantization::Q8_0 => (1, 32, 8),
                Quantization::Q4_0 => (2, 64, 8),
            };
            (code_bytes(quantization, k), widened, step_scales, k.div_ceil(BLOCK) * scales)
        }
    };
    let ring = RING_ROWS * (STEP_BYTES + step_scales);
    // Of whole steps, so that each lane finds its part in its place.
    let row = row_bytes.next_multiple_of(STEP_BYTES) * widened;
    WARPS as usize * ring + rows as usize * (row + scales + NORM_BYTES)
}

/// Kernels by the rows that they compute at once, ascending.
fn variants(format: WeightFormat) -> (&'static Source, &'static [(u32, &'static str)]) {
    match format {
        WeightFormat::Plain(DType::F32) => (
            &LINEAR,
            &[(1, "linear_f32_1"), (2, "linear_f32_2"), (4, "linear_f32_4"), (8, "linear_f32_8")],
        ),
        WeightFormat::Plain(DType::Bf16) => {
            (&LINEAR, &[(1, "linear_bf16_1"), (2, "linear_bf16_2"), (4, "linear_bf16_4")])
        }
        WeightFormat::Plain(DType::F16) => {
            (&LINEAR, &[(1, "linear_f16_1"), (2, "linear_f16_2"), (4, "linear_f16_4")])
        }
        WeightFormat::Quantized(Quantization::Fp8) => {
            (&LINEAR, &[(1, "linear_fp8_1"), (2, "linear_fp8_2"), (4, "linear_fp8_4")])
        }
        WeightFormat::Quantized(Quantization::Q8_0) => {
            (&LINEAR_QUANTIZED, &[(1, "linear_q8_0_1"), (2, "linear_q8_0_2"), (4, "linear_q8_0_4")])
        }
        WeightFormat::Quantized(Quantization::Q4_0) => {
            (&LINEAR_QUANTIZED, &[(1, "linear_q4_0_1"), (2, "linear_q4_0_2"), (4, "linear_q4_0_4")])
        }
    }
}
