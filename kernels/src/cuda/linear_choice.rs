//! Which kernel a product takes, and how it is cut: a pure function of shapes and of the device.
//!
//! Deterministic, the bits of a result come of its row, the weight and the device alone: the rows of
//! a step choose only between ways that give the same bits. Else they may choose the order of sums.

use crate::cuda::CudaOptions;
use crate::cuda::driver::Driver;
use crate::cuda::few_rows::rows_at_once;
use crate::cuda::linear_hopper::{HOPPER_TILINGS, HopperTiling};
use crate::cuda::linear_hopper_quantized::{QUANTIZED_TILINGS, QuantizedTiling};
use crate::cuda::memory::CudaWeight;
use crate::dtype::DType;
use crate::shapes::MatrixShape;
use crate::weight_format::{Quantization, WeightFormat};

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
    /// How the weight is stored.
    pub(crate) format: WeightFormat,
}

impl ProductShape {
    /// Of `rows` rows and a weight.
    pub(crate) fn of(weight: &CudaWeight, rows: usize) -> Self {
        let (n, k) = (weight.rows() as u32, weight.cols() as u32);
        ProductShape { rows: rows as u32, n, k, format: weight.format() }
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// linear.cu and linear_quantized.cu: a few rows at a time, bound by reading weights. One order of
    /// sums for every number of rows. Rows must fit a block's shared memory, in groups.
    Rows,
    /// linear_tiled.cu: f32.
    Tiled,
    /// linear_tensor.cu and its likes, linear_bytes.cu: all but f32. The order of sums depends on the
    /// number of chunks.
    Tensor(Cut),
    /// linear_hopper.cu: bf16 and f16, many rows. One order of sums for every tiling.
    Hopper(HopperTiling, DType),
    /// linear_hopper_quantized.cu: many rows, in bf16, which meets rounded values of the weight.
    HopperQuantized(QuantizedTiling, Quantization),
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

/// A kernel of linear_tensor.cu and its likes, or of linear_bytes.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Kernels for bf16, f16 and fp8; those for bytes: for q8_0 and q4_0.
    names: &'static [&'static str],
    /// Rows of a tile.
    pub(crate) rows: u32,
    /// Columns of a tile.
    pub(crate) columns: u32,
    pub(crate) threads: u32,
    /// Elements of k in a slot of the ring.
    step: u32,
}

/// For bf16, f16 and fp8, by rows, ascending.
pub(crate) const TILINGS: [Tiling; 4] = [
    Tiling {
        names: &["linear_tensor_bf16_16", "linear_tensor_f16_16", "linear_tensor_fp8_16"],
        rows: 16,
        columns: 128,
        threads: 128,
        step: 64,
    },
    Tiling {
        names: &["linear_tensor_bf16_32", "linear_tensor_f16_32", "linear_tensor_fp8_32"],
        rows: 32,
        columns: 128,
        threads: 128,
        step: 64,
    },
    Tiling {
        names: &["linear_tensor_bf16_64", "linear_tensor_f16_64", "linear_tensor_fp8_64"],
        rows: 64,
        columns: 128,
        threads: 128,
        step: 64,
    },
    Tiling {
        names: &["linear_tensor_bf16_128", "linear_tensor_f16_128", "linear_tensor_fp8_128"],
        rows: 128,
        columns: 128,
        threads: 128,
        step: 32,
    },
];
/// For products that fill the device with the largest tiles.
pub(crate) const WIDE: Tiling = Tiling {
    names: &["linear_tensor_bf16_wide", "linear_tensor_f16_wide", "linear_tensor_fp8_wide"],
    rows: 128,
    columns: 256,
    threads: 256,
    step: 32,
};

/// For q8_0 and q4_0, by rows, ascending.
pub(crate) const BYTE_TILINGS: [Tiling; 4] = [
    Tiling {
        names: &["linear_bytes_q8_0_16", "linear_bytes_q4_0_16"],
        rows: 16,
        columns: 128,
        threads: 256,
        step: 128,
    },
    Tiling {
        names: &["linear_bytes_q8_0_32", "linear_bytes_q4_0_32"],
        rows: 32,
        columns: 128,
        threads: 256,
        step: 128,
    },
    Tiling {
        names: &["linear_bytes_q8_0_64", "linear_bytes_q4_0_64"],
        rows: 64,
        columns: 128,
        threads: 256,
        step: 128,
    },
    Tiling {
        names: &["linear_bytes_q8_0_128", "linear_bytes_q4_0_128"],
        rows: 128,
        columns: 128,
        threads: 256,
        step: 128,
    },
];

/// Rows up to which linear.cu's one product a row costs less than reading the weight does.
const VECTOR_ROWS_MAX: u32 = 4;
/// Rows from which a tile of linear_tiled.cu reads a weight less often than linear.cu.
const TILED_ROWS_MIN: u32 = 17;
/// Rows from which half a tile of linear_hopper.cu is used.
const HOPPER_ROWS_MIN: u32 = 65;
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
    let fitting = rows_at_once(target.shared_bytes_max, format, k);
    if format == WeightFormat::Plain(DType::F32) {
        let few = fitting > 0 && (deterministic || rows < TILED_ROWS_MIN);
        return if few { Method::Rows } else { Method::Tiled };
    }
    // Rows that do not fit at once would read the weight again.
    if !deterministic && rows <= VECTOR_ROWS_MAX.min(fitting) {
        return Method::Rows;
    }
    if let Some(method) = hopper(target, shape) {
        return method;
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

/// Whether a product is of so few rows that each of its blocks may norm them, too.
pub(crate) fn may_norm(target: &Target, shape: ProductShape) -> bool {
    shape.rows <= VECTOR_ROWS_MAX && choose(target, shape) == Method::Rows
}

/// How to multiply each of `pairs` rows with the matrix of its expert: a tiling for rows in the order of
/// their experts, or `None`, a row at a time. Products over k, of `k` columns at most, are whole.
pub(crate) fn choose_grouped(
    target: &Target,
    pairs: u32,
    num_experts: u32,
    (format, k): (WeightFormat, u32),
) -> Option<Tiling> {
    // With fewer pairs than experts, most experts have one at most.
    let few = !target.options.deterministic
        && pairs < num_experts
        && rows_at_once(target.shared_bytes_max, format, k) > 0;
    if few || format == WeightFormat::Plain(DType::F32) {
        return None;
    }
    // Most experts' rows fit a tile of twice the average.
    let rows = 2 * pairs.div_ceil(num_experts.max(1));
    // Of one column: a wide tiling is for what fills the device.
    let shape = ProductShape { rows: rows.min(TILINGS[3].rows), n: 1, k: 1, format };
    tiling(target, shape, false)
}

/// The way on Hopper that takes the least time. With less than half of the device busy, a product that
/// is cut over k is better.
fn hopper(target: &Target, shape: ProductShape) -> Option<Method> {
    let ProductShape { rows, n, k, format } = shape;
    if !target.is_hopper || target.options.deterministic || rows < HOPPER_ROWS_MIN {
        return None;
    }
    // All multiprocessors take a tile each, and then the next.
    let time =
        |tiles: u32, of_tile: u64| u64::from(tiles.div_ceil(target.multiprocessors)) * of_tile;
    let (tiles, method) = match format {
        WeightFormat::Plain(format) => {
            let fits =
                |tiling: &HopperTiling| tiling.shared_bytes(format) <= target.shared_bytes_max;
            let fitting = HOPPER_TILINGS.into_iter().filter(fits);
            let of_tile = |it: &HopperTiling| it.work(format).clocks(k);
            let best = fitting.min_by_key(|it| time(it.tiles(rows, n), of_tile(it)))?;
            (best.tiles(rows, n), Method::Hopper(best, format))
        }
        WeightFormat::Quantized(quantization) => {
            let most = target.shared_bytes_max;
            let fits = |tiling: &QuantizedTiling| tiling.shared_bytes(quantization) <= most;
            let fitting = QUANTIZED_TILINGS.into_iter().filter(fits);
            let of_tile = |it: &QuantizedTiling| it.work(quantization).clocks(k);
            let best = fitting.min_by_key(|it| time(it.tiles(rows, n), of_tile(it)))?;
            (best.tiles(rows, n), Method::HopperQuantized(best, quantization))
        }
    };
    (2 * tiles >= target.multiprocessors).then_some(method)
}

/// What a tile of a product on Hopper moves and multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileWork {
    /// Bytes of x and of the weight for 64 of k.
    pub(crate) bytes: u32,
    /// Products of a row with a column, over 64 of k.
    pub(crate) products: u32,
    /// Its results.
    pub(crate) results: u32,
}

/// Bytes for each multiprocessor that the second cache level gives in a clock: 5,120 to all of an H100.
const CACHE_BYTES: u64 = 39;
/// Products over 64 of k that matrix units make in a clock: 2,048 of numbers.
const UNIT_PRODUCTS: u64 = 2048 / 64;

impl TileWork {
    /// Clocks that it takes. Tiles come from the second cache level, and a tile of 128 by 128 asks for 64
    /// bytes in each clock of its products, which is more than there is; one of 128 by 256 asks for 48.
    /// So a product of large tiles costs less, whatever they leave idle in the last turn, and what of
    /// products is not hidden behind copies, and of copies not behind products, does not count.
    fn clocks(&self, k: u32) -> u64 {
        let copies = u64::from(self.bytes).div_ceil(CACHE_BYTES);
        let step = copies.max(u64::from(self.products) / UNIT_PRODUCTS);
        u64::from(k.div_ceil(64)) * step + u64::from(self.results) * 4 / CACHE_BYTES
    }
}

/// Parts of k that fill the device with blocks for `tiles` tiles.
fn chunks(target: &Target, tiles: u32, k: u32) -> u32 {
    let wanted = (2 * target.multiprocessors + tiles) / (2 * tiles);
    let most = k.div_ceil(CHUNK_UNIT) / CHUNK_UNITS_MIN;
    wanted.min(most).clamp(1, CHUNKS_MAX)
}

/// The tiling for a shape, of those that fit into shared memory. All for one format give the same bits.
fn tiling(target: &Target, shape: ProductShape, joins: bool) -> Option<Tiling> {
    let ProductShape { rows, n, format, .. } = shape;
    let fits = |tiling: &Tiling| tiling.shared_bytes(format, joins) <= target.shared_bytes_max;
    let in_bytes = is_in_bytes(format);
    let is_wide = WIDE.tiles(rows, n) >= target.multiprocessors && rows > TILINGS[2].rows;
    if !in_bytes && is_wide && fits(&WIDE) {
        return Some(WIDE);
    }
    let tilings = if in_bytes { BYTE_TILINGS } else { TILINGS };
    let fitting = || tilings.into_iter().filter(fits);
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

    /// Blocks of so many bytes of shared memory that run at once. Of small ones more would fit, but they
    /// share a multiprocessor's reads.
    pub(crate) fn blocks_at_once(&self, shared_bytes: usize) -> u32 {
        // A block takes a kibibyte beside what it asks for, and all but that of one it may ask for.
        const OWN: usize = 1 << 10;
        let of_one = (self.shared_bytes_max + OWN) / (shared_bytes + OWN);
        self.multiprocessors * of_one.clamp(1, 2) as u32
    }

    /// Tiles at most that spread chunks meet at.
    pub(crate) fn meetings_max(&self) -> u32 {
        SPREAD_BLOCKS_MAX * self.multiprocessors
    }
}

impl Tiling {
    /// The kernel for weights of `format`, which is one of this tiling's.
    pub(crate) fn kernel(&self, format: WeightFormat) -> &'static str {
        let index = match format {
            WeightFormat::Plain(DType::F16) | WeightFormat::Quantized(Quantization::Q4_0) => 1,
            WeightFormat::Quantized(Quantization::Fp8) => 2,
            WeightFormat::Plain(_) | WeightFormat::Quantized(Quantization::Q8_0) => 0,
        };
        self.names[index]
    }

    /// Tiles of a result `[rows, n]`.
    pub(crate) fn tiles(&self, rows: u32, n: u32) -> u32 {
        rows.div_ceil(self.rows) * n.div_ceil(self.columns)
    }

    /// Shared memory of a block; `joins`: of one that keeps sums of earlier chunks.
    pub(crate) fn shared_bytes(&self, format: WeightFormat, joins: bool) -> usize {
        let ring = match format {
            WeightFormat::Quantized(Quantization::Q8_0) => self.byte_ring(8),
            WeightFormat::Quantized(Quantization::Q4_0) => self.byte_ring(4),
            // Of bf16 four slots of the weight and two of x.
            WeightFormat::Plain(DType::Bf16) => (4 * self.columns + 2 * self.rows) * self.step * 2,
            // f16 splits x into two parts, as does fp8, of which eight slots are as many bytes.
            _ => (4 * self.columns + 4 * self.rows) * self.step * 2,
        };
        let totals = if joins { self.columns * self.rows * 4 } else { 0 };
        (ring + self.rows * 8 + totals) as usize
    }

    /// Slots of codes of so many bits, of rows of x as bytes, and of scales for each 32 of k.
    fn byte_ring(&self, bits: u32) -> u32 {
        let slots = match (self.rows, bits) {
            (65.., _) => 3,
            (_, 8) => 4,
            _ => 6,
        };
        let blocks = self.step / 32;
        let codes = self.columns * self.step * bits / 8 + self.rows * self.step;
        slots * (codes + self.columns * blocks * 2 + self.rows * blocks * 4)
    }
}

/// Whether rows of x become bytes for weights of `format`.
pub(crate) fn is_in_bytes(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::Quantized(quantization) if quantization.quantizes_rows())
}

impl Cut {
    /// Shared memory of a block.
    pub(crate) fn shared_bytes(&self, format: WeightFormat) -> usize {
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
