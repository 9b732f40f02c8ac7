//! Rows of x as weights in blocks meet them: launches of quantize_rows.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::quantized::padded_scales;
use crate::cuda::source::QUANTIZE_ROWS;
use crate::error::KernelError;
use crate::weight_format::BLOCK;

/// Mirrors `QuantizeRows` of quantize_rows.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct QuantizeRows {
    x: DevicePointer,
    codes: DevicePointer,
    scales: DevicePointer,
    rows: u32,
    k: u32,
}

/// Rows as bytes: codes `[rows, blocks of k, 32]`, f32 scales `[rows, padded_scales(k)]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteRows {
    pub(crate) codes: DevicePointer,
    pub(crate) scales: DevicePointer,
}

const THREADS: u32 = 256;
/// Elements of a thread.
const WORD: usize = 4;
/// Blocks for each multiprocessor: as many as it holds at once.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// What codes end at, so that scales behind them are in whole pieces for copies.
const ALIGNMENT: usize = 256;

/// Bytes of codes of `rows` rows of `k` columns, and of all.
fn sizes(rows: usize, k: usize) -> (usize, usize) {
    let codes = (rows * k.next_multiple_of(BLOCK)).next_multiple_of(ALIGNMENT);
    (codes, codes + rows * padded_scales(k) * 4)
}

/// Bytes that rows take once they are bytes.
pub(crate) fn byte_rows_bytes(rows: usize, k: usize) -> usize {
    sizes(rows, k).1
}

impl ByteRows {
    /// Makes bytes of `rows` rows of `k` columns of `x`, at `to`. The device has so many multiprocessors.
    ///
    /// # Safety
    /// `x` has those rows, and `to` is aligned as allocations are and has [`byte_rows_bytes`].
    pub(crate) unsafe fn launch(
        driver: &dyn Driver,
        x: DevicePointer,
        (rows, k): (u32, u32),
        to: DevicePointer,
        multiprocessors: u32,
    ) -> Result<Self, KernelError> {
        let (rows_, k_) = (rows as usize, k as usize);
        let made = ByteRows { codes: to, scales: to.offset(sizes(rows_, k_).0) };
        let words = rows_ * padded_scales(k_) * BLOCK / WORD;
        let blocks = words.div_ceil(THREADS as usize) as u32;
        let most = multiprocessors.saturating_mul(BLOCKS_PER_MULTIPROCESSOR).max(1);
        let grid = Grid { blocks: [blocks.min(most), 1, 1], shared_bytes: 0 };
        let op = QuantizeRows { x, codes: made.codes, scales: made.scales, rows, k };
        // SAFETY: the caller's promise.
        unsafe {
            launch(driver, &Kernel::new(&QUANTIZE_ROWS, "quantize_rows", THREADS), grid, &op)
        }?;
        Ok(made)
    }
}
