//! `linear` of many rows with quantized weights on Hopper: launches of narrow_rows.cu and
//! linear_hopper_quantized.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::TileWork;
use crate::cuda::linear_hopper::{NarrowRows, ring_room};
use crate::cuda::source::LINEAR_HOPPER_QUANTIZED;
use crate::cuda::tensor_map::{Axis, LINE_BYTES, TensorMap, TensorMapSpec};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::weight_format::Quantization;

/// Mirrors `HopperQuantized` of linear_hopper_quantized.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct HopperQuantized {
    x: TensorMap,
    codes: TensorMap,
    linear: Linear,
    row_tiles: u32,
    column_tiles: u32,
}

/// A kernel of linear_hopper_quantized.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuantizedTiling {
    /// Kernels for q8_0, q4_0 and fp8.
    names: [&'static str; 3],
    /// Rows of a tile.
    pub(crate) rows: u32,
}

/// By rows, ascending.
pub(crate) const QUANTIZED_TILINGS: [QuantizedTiling; 2] = [
    QuantizedTiling {
        names: ["linear_hopper_q8_0_128", "linear_hopper_q4_0_128", "linear_hopper_fp8_128"],
        rows: 128,
    },
    QuantizedTiling {
        names: ["linear_hopper_q8_0_256", "linear_hopper_q4_0_256", "linear_hopper_fp8_256"],
        rows: 256,
    },
];

/// Columns of a tile.
const TILE_COLUMNS: u32 = 128;
/// A producer's warpgroup and two of consumers.
const THREADS: u32 = 3 * 128;
/// Elements of k in a slot.
const STEP: usize = 64;
/// Of eight warps, 32 rows of 16 results, set apart by four.
const PATCHES_BYTES: usize = 8 * 32 * (16 + 4) * 4;

/// Columns of x, once its elements have changed places within whole steps.
fn placed_columns(k: usize) -> usize {
    k.next_multiple_of(STEP)
}

/// Bytes of `rows` rows of x of `k` columns once they are as products want them.
pub(crate) fn placed_bytes(rows: usize, k: usize) -> usize {
    rows * placed_columns(k) * 2
}

/// Bytes of codes in a slot, of a row.
fn code_bytes(quantization: Quantization) -> usize {
    if quantization == Quantization::Q4_0 { STEP / 2 } else { STEP }
}

impl QuantizedTiling {
    /// Tiles of a result `[rows, n]`.
    pub(crate) fn tiles(&self, rows: u32, n: u32) -> u32 {
        rows.div_ceil(self.rows) * n.div_ceil(TILE_COLUMNS)
    }

    /// What a tile takes.
    pub(crate) fn work(&self, quantization: Quantization) -> TileWork {
        let results = self.rows * TILE_COLUMNS;
        TileWork { bytes: self.slot_bytes(quantization) as u32, products: results, results }
    }

    fn slot_bytes(&self, quantization: Quantization) -> usize {
        let codes = TILE_COLUMNS as usize * code_bytes(quantization);
        self.rows as usize * LINE_BYTES + codes
    }

    /// Shared memory of a block.
    pub(crate) fn shared_bytes(&self, quantization: Quantization) -> usize {
        let slot = self.slot_bytes(quantization);
        // Two barriers a slot.
        ring_room(PATCHES_BYTES) / slot * (slot + 16) + PATCHES_BYTES
    }

    /// Multiplies with a weight of `quantization`, on `blocks` multiprocessors; x passes through
    /// `placed`, which has [`placed_bytes`].
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh and quantized.cuh say for its rows, and there are no
    /// experts.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        linear: &Linear,
        (placed, quantization): (DevicePointer, Quantization),
        blocks: u32,
    ) -> Result<(), KernelError> {
        let Linear { x, rows, n, k, stride, .. } = *linear;
        let columns = placed_columns(k as usize);
        let format = DType::Bf16;
        let element = format.bytes();
        let map = |address, axes: [Axis; 2], swizzled| {
            driver.tensor_map(&TensorMapSpec { address, format, axes: &axes, swizzled })
        };
        let inner = |bytes: usize, taken| Axis { size: bytes / element, stride: element, taken };
        let x_axes = [
            inner(columns * element, LINE_BYTES / element),
            Axis { size: rows as usize, stride: columns * element, taken: self.rows as usize },
        ];
        // Of codes two bytes are an element.
        let stride = stride as usize;
        let code_axes = [
            inner(stride, code_bytes(quantization) / element),
            Axis { size: n as usize, stride, taken: TILE_COLUMNS as usize },
        ];
        let product = HopperQuantized {
            x: map(placed, x_axes, true)?,
            codes: map(linear.weight, code_axes, false)?,
            linear: *linear,
            row_tiles: rows.div_ceil(self.rows),
            column_tiles: n.div_ceil(TILE_COLUMNS),
        };
        let is_halves = quantization == Quantization::Q4_0;
        let name = if is_halves { "narrow_rows_halves" } else { "narrow_rows_bytes" };
        let place = NarrowRows { x, out: placed, rows, k, stride: columns as u32 };
        // SAFETY: the caller's promise.
        unsafe { place.launch(driver, name, blocks) }?;
        let name = match quantization {
            Quantization::Q8_0 => self.names[0],
            Quantization::Q4_0 => self.names[1],
            Quantization::Fp8 => self.names[2],
        };
        let tiles = product.row_tiles * product.column_tiles;
        let shared_bytes = self.shared_bytes(quantization);
        let grid = Grid { blocks: [tiles.min(blocks), 1, 1], shared_bytes };
        let kernel = Kernel::new(&LINEAR_HOPPER_QUANTIZED, name, THREADS);
        // SAFETY: as above; the maps are of these buffers.
        unsafe { launch(driver, &kernel, grid, &product) }
    }
}
