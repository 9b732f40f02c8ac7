//! `attention`: launches of attention.cu, attention_sized.cu and attention_fp8.cu.

use std::ops::Range;

use crate::cuda::attention_plan::{AttentionPlan, TileRows};
use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::plain::Plain;
use crate::cuda::source::{ATTENTION, ATTENTION_FP8, ATTENTION_SIZED, Source};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::KvFormat::{self, Fp8, Plain as Elements};
use crate::ops::Heads;

/// Tokens of a unit: keys are cut at multiples of it.
pub(crate) const UNIT: u32 = 256;
/// The largest head.
pub(crate) const HEAD_DIM_MAX: usize = 256;
/// The smallest block of a cache.
pub(crate) const BLOCK_SIZE_MIN: usize = 16;
/// As a piece's `partial`: it has all units of its rows.
pub(crate) const WHOLE: u32 = u32::MAX;

/// Mirrors `AttentionPiece` of attention_tile.cuh: a tile of rows and units of its keys. All zeros:
/// nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct AttentionPiece {
    pub(crate) table: u32,
    pub(crate) num_blocks: u32,
    pub(crate) row: u32,
    pub(crate) num_rows: u32,
    pub(crate) position: u32,
    pub(crate) first_unit: u32,
    pub(crate) num_units: u32,
    pub(crate) partial: u32,
}

/// Mirrors `Attention` of attention_tile.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Attention {
    pub(crate) qkv: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) keys: DevicePointer,
    pub(crate) values: DevicePointer,
    pub(crate) block_table: DevicePointer,
    pub(crate) slots: DevicePointer,
    pub(crate) pieces: DevicePointer,
    pub(crate) sinks: DevicePointer,
    pub(crate) partials: DevicePointer,
    pub(crate) num_q: u32,
    pub(crate) num_kv: u32,
    pub(crate) head_dim: u32,
    pub(crate) block_bits: u32,
    /// `u32::MAX`: all keys.
    pub(crate) window: u32,
    pub(crate) scale: f32,
    /// 0: none.
    pub(crate) soft_cap: f32,
}

// SAFETY: eight words, as many as its alignment asks for.
unsafe impl Plain for AttentionPiece {}

/// A kernel for pieces, and what its blocks take.
#[derive(Clone, Copy, Debug)]
struct Units {
    source: &'static Source,
    name: &'static str,
    threads: u32,
    /// Score rows of a tile.
    rows: usize,
    shared_bytes: usize,
}

/// The kernels of layers of one kind: chosen when a model is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionKernels {
    narrow: Units,
    /// For long queries.
    wide: Option<Units>,
    /// Query heads of a KV head.
    group: usize,
}

const MERGE_THREADS: u32 = 128;
/// Blocks of a grid's second axis.
const PIECES_MAX: u32 = 65535;

impl AttentionKernels {
    /// The kernels for `heads` and a cache of `format`, of those whose blocks take no more than
    /// `shared_bytes_max`. All give the same bits.
    pub(crate) fn new(
        heads: Heads,
        format: impl Into<KvFormat>,
        shared_bytes_max: usize,
    ) -> Result<Self, KernelError> {
        let format = format.into();
        let Heads { num_q, num_kv, head_dim } = heads;
        // K and V are copied 16 bytes at a time.
        let is_whole = (head_dim * format.element_bytes()).is_multiple_of(16) && head_dim > 0;
        let group = num_q / num_kv;
        let narrow = narrow(format, head_dim);
        let fits = narrow.shared_bytes <= shared_bytes_max;
        if !is_whole || head_dim > HEAD_DIM_MAX || group > narrow.rows || !fits {
            return Err(KernelError::Unsupported(format!(
                "attention of {num_q} query and {num_kv} KV heads of {head_dim} over a cache in {}",
                format.name()
            )));
        }
        let wide = wide(format, head_dim).filter(|units| units.shared_bytes <= shared_bytes_max);
        Ok(AttentionKernels { narrow, wide, group })
    }

    /// Rows of the tiles that the kernels take.
    pub(crate) fn tile_rows(&self) -> TileRows {
        let rows = |units: Units| (units.rows / self.group) as u32;
        TileRows { narrow: rows(self.narrow), wide: self.wide.map(rows) }
    }
}

impl Attention {
    /// Attends as `plan` says, whose pieces are at `pieces` on the device.
    ///
    /// # Safety
    /// Every pointer has what attention_tile.cuh says for the plan's batch; the plan was made for
    /// these heads, this window and the rows of `kernels`, which are those of the cache's format;
    /// blocks have [`BLOCK_SIZE_MIN`] tokens or more.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        kernels: &AttentionKernels,
        plan: &AttentionPlan,
    ) -> Result<(), KernelError> {
        let wide = kernels.wide.map(|wide| (wide, plan.wide()));
        for (units, pieces) in wide.into_iter().chain([(kernels.narrow, plan.narrow())]) {
            let Units { source, name, threads, shared_bytes, .. } = units;
            let kernel = Kernel::new(source, name, threads);
            let heads = Grid { blocks: [self.num_kv, 1, 1], shared_bytes };
            // SAFETY: the caller's promise.
            unsafe { self.launch_over(driver, &kernel, heads, pieces) }?;
        }
        let merge = Kernel::new(&ATTENTION, "attention_merge", MERGE_THREADS);
        let heads = Grid { blocks: [self.num_q, 1, 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { self.launch_over(driver, &merge, heads, plan.split()) }
    }

    /// Starts `kernel` with `heads` for each of a range of pieces.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_over(
        &self,
        driver: &dyn Driver,
        kernel: &Kernel<Attention>,
        heads: Grid,
        pieces: Range<u32>,
    ) -> Result<(), KernelError> {
        for first in pieces.clone().step_by(PIECES_MAX as usize) {
            let blocks = [heads.blocks[0], PIECES_MAX.min(pieces.end - first), 1];
            let grid = Grid { blocks, ..heads };
            let skipped = first as usize * size_of::<AttentionPiece>();
            let attention = Attention { pieces: self.pieces.offset(skipped), ..*self };
            // SAFETY: the caller's promise.
            unsafe { launch(driver, kernel, grid, &attention) }?;
        }
        Ok(())
    }
}

/// The kernel of tiles of up to 16 score rows.
fn narrow(format: KvFormat, head_dim: usize) -> Units {
    let name = match (format, head_dim) {
        (Elements(DType::F32), _) => return plain(head_dim),
        (Elements(DType::Bf16), 64) => "attention_units_bf16_64",
        (Elements(DType::Bf16), 80) => "attention_units_bf16_80",
        (Elements(DType::Bf16), 96) => "attention_units_bf16_96",
        (Elements(DType::Bf16), 128) => "attention_units_bf16_128",
        (Elements(DType::Bf16), 256) => "attention_units_bf16_256",
        (Elements(DType::F16), 64) => "attention_units_f16_64",
        (Elements(DType::F16), 80) => "attention_units_f16_80",
        (Elements(DType::F16), 96) => "attention_units_f16_96",
        (Elements(DType::F16), 128) => "attention_units_f16_128",
        (Elements(DType::F16), 256) => "attention_units_f16_256",
        (Fp8, 64) => "attention_units_fp8_64",
        (Fp8, 80) => "attention_units_fp8_80",
        (Fp8, 96) => "attention_units_fp8_96",
        (Fp8, 128) => "attention_units_fp8_128",
        (Fp8, 256) => "attention_units_fp8_256",
        _ => {
            let (source, name) = match format {
                Elements(DType::F16) => (&ATTENTION, "attention_units_f16"),
                Elements(_) => (&ATTENTION, "attention_units_bf16"),
                Fp8 => (&ATTENTION_FP8, "attention_units_fp8"),
            };
            return tensor(source, name, head_dim, Shared { format, slots: 2, rows: 16, warps: 4 });
        }
    };
    let slots = if head_dim == 256 { 2 } else { 4 };
    tensor(sized(format), name, head_dim, Shared { format, slots, rows: 16, warps: 4 })
}

/// The kernel of tiles of up to 64 score rows, where there is one.
fn wide(format: KvFormat, head_dim: usize) -> Option<Units> {
    let name = match (format, head_dim) {
        (Elements(DType::Bf16), 64) => "attention_units_wide_bf16_64",
        (Elements(DType::Bf16), 80) => "attention_units_wide_bf16_80",
        (Elements(DType::Bf16), 96) => "attention_units_wide_bf16_96",
        (Elements(DType::Bf16), 128) => "attention_units_wide_bf16_128",
        (Elements(DType::Bf16), 256) => "attention_units_wide_bf16_256",
        (Fp8, 64) => "attention_units_wide_fp8_64",
        (Fp8, 80) => "attention_units_wide_fp8_80",
        (Fp8, 96) => "attention_units_wide_fp8_96",
        (Fp8, 128) => "attention_units_wide_fp8_128",
        (Fp8, 256) => "attention_units_wide_fp8_256",
        _ => return None,
    };
    let slots = if head_dim == 256 { 2 } else { 3 };
    Some(tensor(sized(format), name, head_dim, Shared { format, slots, rows: 64, warps: 8 }))
}

/// Where the kernels for heads of known sizes are.
fn sized(format: KvFormat) -> &'static Source {
    if format == Fp8 { &ATTENTION_FP8 } else { &ATTENTION_SIZED }
}

/// What a kernel's place in shared memory is made of.
struct Shared {
    format: KvFormat,
    slots: usize,
    rows: usize,
    warps: u32,
}

/// A score row: a unit's scores and what sets rows apart, then maximum and sum.
const SCORE_ROW_BYTES: usize = UNIT as usize * 4 + 16 + 8;

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// `TensorMath` of attention_tensor.cuh, and the ring that feeds it.
fn tensor(
    source: &'static Source,
    name: &'static str,
    head_dim: usize,
    Shared { format, slots, rows, warps }: Shared,
) -> Units {
    let steps = head_dim.div_ceil(16);
    let chunk = CHUNK * (steps * 32 + 16);
    let ring = match format {
        Elements(_) => slots * chunk,
        Fp8 => slots * format.head_bytes(CHUNK, head_dim) + chunk,
    };
    let shared_bytes = ring + rows * steps * 64 + rows * SCORE_ROW_BYTES;
    Units { source, name, threads: warps * 32, rows, shared_bytes }
}

/// `PlainMath` of attention_plain.cuh.
fn plain(head_dim: usize) -> Units {
    let rows = 16;
    let ring = 2 * 32 * (head_dim * 4 + 16);
    let shared_bytes = ring + rows * head_dim * 4 + rows * SCORE_ROW_BYTES;
    let name = "attention_units_f32";
    Units { source: &ATTENTION, name, threads: 256, rows, shared_bytes }
}
