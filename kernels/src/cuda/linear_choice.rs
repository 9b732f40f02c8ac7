//! Which kernel a product takes, and how it is cut: a pure function of shapes and of the device.
//!
//! Deterministic, the bits of a result come of its row, the weight and the device alone: the rows of
//! a step choose only between ways that give the same bits. Else they may choose the order of sums.

use crate::cuda::CudaOptions;
use crate::cuda::driver::Driver;
use crate::cuda::linear_hopper::{HOPPER_TILINGS, HopperTiling};
use crate::cuda::memory::CudaWeight;
use crate::dtype::DType;
use crate::shapes::MatrixShape;
use crate::weight_format::WeightFormat;

/// What kernels are chosen for, beside an op's shapes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Of the device.
    pub(crate) multiprocessors: u32,
    /// Shared memory that a block may ask for.
    pub(crate) shared_bytes_max: usize,
    /// Whether it has Hopper's instructions, which no other architecture has.
    pub(crate) is_hopper: bool,
    /// Whether the device's maker has a library of products here.
    pub(crate) has_library: bool,
    /// What was asked for.
    pub(crate) options: CudaOptions,
}

/// A product's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProductShape {
    /// Rows of x.
    pub(crate) rows: u32,
    /// Rows of the weight.
    pub(crate) n: u32,
    /// Columns of both.
    pub(crate) k: u32,
    /// The weight's type.
    pub(crate) format: DType,
}

impl ProductShape {
    /// Of a product whose kernel is chosen by its shape.
    pub(crate) fn of(weight: &CudaWeight, rows: usize) -> Option<Self> {
        let (n, k) = (weight.rows() as u32, weight.cols() as u32);
        match weight.format() {
            WeightFormat::Plain(format) => Some(ProductShape { rows: rows as u32, n, k, format }),
            WeightFormat::Quantized(_) => None,
        }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// linear.cu: a few rows at a time, bound by reading weights. One order of sums for every number
    /// of rows.
    Rows,
    /// linear_tiled.cu: f32.
    Tiled,
    /// linear_tensor.cu: bf16 and f16. The order of sums depends on the number of chunks.
    Tensor(Cut),
    /// linear_hopper.cu: the same types, for many rows. One order of sums for every tiling.
    Hopper(HopperTiling),
}

/// How a product on matrix units is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) tiling: Tiling,
    /// Parts of k.
    pub(crate) chunks: u32,
    /// Whether each chunk has blocks of its own, which leave their sums to the last of them.
    pub(crate) is_spread: bool,
}

/// A kernel of linear_tensor.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Kernels for bf16 and for f16.
    names: [&'static str; 2],
    /// Rows of a tile.
    pub(crate) rows: u32,
    /// Columns of a tile.
    pub(crate) columns: u32,
    pub(crate) threads: u32,
    /// Elements of k in a slot of the ring.
    step: u32,
}

/// By rows, ascending.
pub(crate) const TILINGS: [Tiling; 4] = [
    Tiling {
        names: ["linear_tensor_bf16_16", "linear_tensor_f16_16"],
        rows: 16,
        columns: 128,
        threads: 128,
        step: 64,
    },
    Tiling {
        names: ["linear_tensor_bf16_32", "linear_tensor_f16_32"],
        rows: 32,
        columns: 128,
        threads: 128,
        step: 64,
    },
    Tiling {
        names: ["linear_tensor_bf16_64", "linear_tensor_f16_64"],
        rows: 64,
        columns: 128,
        threads: 128,
        step: 64,
    },
    Tiling {
        names: ["linear_tensor_bf16_128", "linear_tensor_f16_128"],
        rows: 128,
        columns: 128,
        threads: 128,
        step: 32,
    },
];
/// For products that fill the device with the largest tiles.
pub(crate) const WIDE: Tiling = Tiling {
    names: ["linear_tensor_bf16_wide", "linear_tensor_f16_wide"],
    rows: 128,
    columns: 256,
    threads: 256,
    step: 32,
};

/// Rows up to which linear.cu's one product a row costs less than reading the weight does.
const VECTOR_ROWS_MAX: u32 = 4;
/// Rows from which a tile of linear_tiled.cu reads a weight less often than linear.cu.
const TILED_ROWS_MIN: u32 = 17;
/// Rows from which half a tile of linear_hopper.cu is used.
const HOPPER_ROWS_MIN: u32 = 65;
/// What a tile of it takes beside its products, in columns of products: its results' way out.
const HOPPER_TILE_COST: u32 = 16;
/// Chunks are cut at multiples of it; CHUNK_UNIT of linear_tile.cuh.
const CHUNK_UNIT: u32 = 64;
/// Units of a chunk at least: what the ring holds.
const CHUNK_UNITS_MIN: u32 = 4;
/// Chunks at most: each adds a tile of sums to write and to read.
const CHUNKS_MAX: u32 = 16;

/// Blocks for each multiprocessor, past which chunks of a tile stay in one block: no more are at work
/// then, and each leaves a tile of sums in memory.
const SPREAD_BLOCKS_MAX: u32 = 4;

/// How to multiply.
pub(crate) fn choose(target: &Target, shape: ProductShape) -> Method {
    let deterministic = target.options.deterministic;
    let ProductShape { rows, n, k, format } = shape;
    if format == DType::F32 {
        let few = deterministic || rows < TILED_ROWS_MIN;
        return if few { Method::Rows } else { Method::Tiled };
    }
    if !deterministic && rows <= VECTOR_ROWS_MAX {
        return Method::Rows;
    }
    if let Some(tiling) = hopper(target, shape) {
        return Method::Hopper(tiling);
    }
    // One row of narrow tiles: what cuts k if rows may not.
    let fixed = chunks(target, n.div_ceil(128), k);
    let joins = deterministic && fixed > 1;
    let Some(tiling) = tiling(target, shape, joins) else {
        return Method::Rows;
    };
    let tiles = tiling.tiles(rows, n);
    let chunks = if deterministic { fixed } else { chunks(target, tiles, k) };
    let is_few = tiles < target.multiprocessors
        && tiles * chunks <= SPREAD_BLOCKS_MAX * target.multiprocessors;
    let is_spread = chunks > 1 && is_few;
    Method::Tensor(Cut { tiling, chunks, is_spread })
}

/// How to multiply each of `pairs` rows with the matrix of its expert: a tiling for rows in the order of
/// their experts, or `None`, a row at a time. Products over k are whole.
pub(crate) fn choose_grouped(
    target: &Target,
    pairs: u32,
    num_experts: u32,
    format: DType,
) -> Option<Tiling> {
    // With fewer pairs than experts, most experts have one at most.
    if format == DType::F32 || (!target.options.deterministic && pairs < num_experts) {
        return None;
    }
    // Most experts' rows fit a tile of twice the average.
    let rows = 2 * pairs.div_ceil(num_experts.max(1));
    // Of one column: a wide tiling is for what fills the device.
    let shape = ProductShape { rows: rows.min(TILINGS[3].rows), n: 1, k: 1, format };
    tiling(target, shape, false)
}

/// The tiling on Hopper that takes the least time. With less than half of the device busy, a product
/// that is cut over k is better.
fn hopper(target: &Target, shape: ProductShape) -> Option<HopperTiling> {
    let ProductShape { rows, n, format, .. } = shape;
    if !target.is_hopper || target.options.deterministic || rows < HOPPER_ROWS_MIN {
        return None;
    }
    let fits = |tiling: &HopperTiling| tiling.shared_bytes(format) <= target.shared_bytes_max;
    let time = |tiling: &HopperTiling| {
        let turns = tiling.tiles(rows, n).div_ceil(target.multiprocessors);
        u64::from(turns) * u64::from(tiling.columns + HOPPER_TILE_COST)
    };
    let best = HOPPER_TILINGS.into_iter().filter(fits).min_by_key(time)?;
    (2 * best.tiles(rows, n) >= target.multiprocessors).then_some(best)
}

/// Parts of k that fill the device with blocks for `tiles` tiles.
fn chunks(target: &Target, tiles: u32, k: u32) -> u32 {
    let wanted = (2 * target.multiprocessors + tiles) / (2 * tiles);
    let most = k.div_ceil(CHUNK_UNIT) / CHUNK_UNITS_MIN;
    wanted.min(most).clamp(1, CHUNKS_MAX)
}

/// The tiling for a shape, of those that fit into shared memory. All give the same bits.
fn tiling(target: &Target, shape: ProductShape, joins: bool) -> Option<Tiling> {
    let ProductShape { rows, n, format, .. } = shape;
    let fits = |tiling: &Tiling| tiling.shared_bytes(format, joins) <= target.shared_bytes_max;
    if fits(&WIDE) && WIDE.tiles(rows, n) >= target.multiprocessors && rows > TILINGS[2].rows {
        return Some(WIDE);
    }
    let fitting = || TILINGS.into_iter().filter(fits);
    fitting().find(|tiling| tiling.rows >= rows).or_else(|| fitting().next_back())
}

impl Target {
    /// Of a device with so many multiprocessors, when nothing was asked for.
    pub(crate) fn of(driver: &dyn Driver, multiprocessors: u32) -> Self {
        let (shared_bytes_max, options) = (driver.shared_bytes_max(), CudaOptions::default());
        let is_hopper = driver.capability() == (9, 0);
        let has_library = driver.product_library().is_some();
        Target { multiprocessors, shared_bytes_max, is_hopper, has_library, options }
    }

    /// Blocks that plans of attention aim at, to keep the device busy: what shared memory allows at least.
    pub(crate) fn attention_blocks(&self) -> u32 {
        2 * self.multiprocessors
    }

    /// Tiles at most that spread chunks meet at.
    pub(crate) fn meetings_max(&self) -> u32 {
        SPREAD_BLOCKS_MAX * self.multiprocessors
    }
}

impl Tiling {
    /// The kernel for weights of `format`, f16 or bf16.
    pub(crate) fn kernel(&self, format: DType) -> &'static str {
        self.names[usize::from(format == DType::F16)]
    }

    /// Tiles of a result `[rows, n]`.
    pub(crate) fn tiles(&self, rows: u32, n: u32) -> u32 {
        rows.div_ceil(self.rows) * n.div_ceil(self.columns)
    }

    /// Shared memory of a block; `joins`: of one that keeps sums of earlier chunks.
    pub(crate) fn shared_bytes(&self, format: DType, joins: bool) -> usize {
        // Four slots of the weight, two of x, which f16 splits into two parts.
        let parts = if format == DType::F16 { 2 } else { 1 };
        let ring = (4 * self.columns + 2 * parts * self.rows) * self.step * 2;
        let totals = if joins { self.columns * self.rows * 4 } else { 0 };
        (ring + self.rows * 8 + totals) as usize
    }
}

impl Cut {
    /// Shared memory of a block.
    pub(crate) fn shared_bytes(&self, format: DType) -> usize {
        self.tiling.shared_bytes(format, self.chunks > 1 && !self.is_spread)
    }

    /// Floats that spread chunks of a result `[rows, n]` leave in memory.
    pub(crate) fn partial_floats(&self, rows: u32, n: u32) -> usize {
        let Tiling { rows: tile_rows, columns, .. } = self.tiling;
        let tiles = self.tiling.tiles(rows, n) as usize;
        let floats = tiles * (tile_rows * columns) as usize * self.chunks as usize;
        if self.is_spread { floats } else { 0 }
    }
}
