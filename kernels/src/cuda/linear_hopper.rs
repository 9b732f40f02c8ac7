//! `linear` of many rows on Hopper: launches of narrow_rows.cu and linear_hopper.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::TileWork;
use crate::cuda::source::{LINEAR_HOPPER, NARROW_ROWS};
use crate::cuda::tensor_map::{Axis, LINE_BYTES, TensorMap, TensorMapSpec};
use crate::dtype::DType;
use crate::error::KernelError;

/// Mirrors `NarrowRows` of narrow_rows.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct NarrowRows {
    pub(crate) x: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) rows: u32,
    pub(crate) k: u32,
    pub(crate) stride: u32,
}

/// Mirrors `HopperLinear` of linear_hopper.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct HopperLinear {
    x: TensorMap,
    weight: TensorMap,
    linear: Linear,
    row_tiles: u32,
    column_tiles: u32,
}

/// A kernel of linear_hopper.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HopperTiling {
    /// Kernels for bf16 and for f16.
    names: [&'static str; 2],
    /// Columns of a tile.
    pub(crate) columns: u32,
}

/// By columns, ascending.
pub(crate) const HOPPER_TILINGS: [HopperTiling; 2] = [
    HopperTiling { names: ["linear_hopper_bf16_128", "linear_hopper_f16_128"], columns: 128 },
    HopperTiling { names: ["linear_hopper_bf16_256", "linear_hopper_f16_256"], columns: 256 },
];

/// Rows of a tile.
pub(crate) const TILE_ROWS: u32 = 128;
/// A producer's warpgroup and two of consumers.
const THREADS: u32 = 3 * 128;
/// Of eight warps, 16 rows of 32 results, set apart by eight.
const PATCHES_BYTES: usize = 8 * 16 * (32 + 8) * 4;
/// What a block may have of shared memory, less a kibibyte for barriers.
const RING_ROOM: usize = 226 << 10;
const NARROW_THREADS: u32 = 256;
/// Elements that a thread rounds at once.
const NARROW_PIECE: usize = 8;
/// Blocks that round rows, for each of the device's: as many as it holds at once.
const NARROW_BLOCKS: u32 = 8;

/// What slots may take of shared memory beside so many other bytes.
pub(crate) fn ring_room(others: usize) -> usize {
    RING_ROOM - others
}

/// Parts of x that an element of a weight meets.
fn parts(format: DType) -> usize {
    if format == DType::F16 { 2 } else { 1 }
}

/// Bytes of `rows` rows of x once they are rounded, or split, for a weight of `stride` columns.
pub(crate) fn narrowed_bytes(rows: usize, stride: usize, format: DType) -> usize {
    parts(format) * rows * stride * format.bytes()
}

/// Rounds rows of x, or splits them, for a weight of `format`, f16 or bf16, on `blocks` multiprocessors:
/// into `narrowed`, which has [`narrowed_bytes`].
///
/// # Safety
/// As [`HopperTiling::launch`].
pub(crate) unsafe fn narrow(
    driver: &dyn Driver,
    linear: &Linear,
    (narrowed, format): (DevicePointer, DType),
    blocks: u32,
) -> Result<(), KernelError> {
    let Linear { x, rows, k, stride, .. } = *linear;
    let name = match format {
        DType::F16 => "narrow_rows_f16",
        _ => "narrow_rows_bf16",
    };
    // SAFETY: the caller's promise.
    unsafe { NarrowRows { x, out: narrowed, rows, k, stride }.launch(driver, name, blocks) }
}

impl NarrowRows {
    /// Makes rows what products want, by the kernel `name`, on so many multiprocessors.
    ///
    /// # Safety
    /// Every pointer has what narrow_rows.cu says for the rows.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        name: &'static str,
        multiprocessors: u32,
    ) -> Result<(), KernelError> {
        let elements = self.rows as usize * self.stride as usize;
        let blocks = elements.div_ceil(NARROW_PIECE * NARROW_THREADS as usize) as u32;
        let most = NARROW_BLOCKS * multiprocessors;
        let grid = Grid { blocks: [blocks.min(most), 1, 1], shared_bytes: 0 };
        let kernel = Kernel::new(&NARROW_ROWS, name, NARROW_THREADS);
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &kernel, grid, self) }
    }
}

impl HopperTiling {
    /// Tiles of a result `[rows, n]`.
    pub(crate) fn tiles(&self, rows: u32, n: u32) -> u32 {
        rows.div_ceil(TILE_ROWS) * n.div_ceil(self.columns)
    }

    /// What a tile takes.
    pub(crate) fn work(&self, format: DType) -> TileWork {
        let results = TILE_ROWS * self.columns;
        let products = parts(format) as u32 * results;
        TileWork { bytes: self.slot_bytes(format) as u32, products, results }
    }

    fn slot_bytes(&self, format: DType) -> usize {
        (parts(format) * TILE_ROWS as usize + self.columns as usize) * LINE_BYTES
    }

    /// Shared memory of a block.
    pub(crate) fn shared_bytes(&self, format: DType) -> usize {
        let slot = self.slot_bytes(format);
        // Two barriers a slot.
        ring_room(PATCHES_BYTES) / slot * (slot + 16) + PATCHES_BYTES
    }

    /// Multiplies with a weight of `format`, f16 or bf16, on `blocks` multiprocessors; x passes
    /// through `narrowed`, which has [`narrowed_bytes`].
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh says for its rows, and there are no experts.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        linear: &Linear,
        (narrowed, format): (DevicePointer, DType),
        blocks: u32,
    ) -> Result<(), KernelError> {
        let Linear { rows, n, k, stride, .. } = *linear;
        let element = format.bytes();
        let [rows_, stride_] = [rows as usize, stride as usize];
        let inner = Axis { size: k as usize, stride: element, taken: LINE_BYTES / element };
        let line = stride_ * element;
        let x_axes = [
            inner,
            Axis { size: rows_, stride: line, taken: TILE_ROWS as usize },
            Axis { size: parts(format), stride: rows_ * line, taken: 1 },
        ];
        let weight_axes =
            [inner, Axis { size: n as usize, stride: line, taken: self.columns as usize }];
        let map = |address, axes: &[Axis]| {
            driver.tensor_map(&TensorMapSpec { address, format, axes, swizzled: true })
        };
        let product = HopperLinear {
            x: map(narrowed, &x_axes)?,
            weight: map(linear.weight, &weight_axes)?,
            linear: *linear,
            row_tiles: rows.div_ceil(TILE_ROWS),
            column_tiles: n.div_ceil(self.columns),
        };
        // SAFETY: the caller's promise.
        unsafe { narrow(driver, linear, (narrowed, format), blocks) }?;
        let tiles = self.tiles(rows, n);
        let shared_bytes = self.shared_bytes(format);
        let grid = Grid { blocks: [tiles.min(blocks), 1, 1], shared_bytes };
        let name = self.names[usize::from(format == DType::F16)];
        let kernel = Kernel::new(&LINEAR_HOPPER, name, THREADS);
        // SAFETY: as above; the maps are of these buffers.
        unsafe { launch(driver, &kernel, grid, &product) }
    }
}
