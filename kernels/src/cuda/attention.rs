//! `attention`: launches of attention.cu and attention_sized.cu.

use std::ops::Range;

use crate::cuda::attention_plan::{AttentionPlan, TileRows};
use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::plain::Plain;
use crate::cuda::source::{ATTENTION, ATTENTION_SIZED, Source};
use crate::dtype::DType;
use crate::error::KernelError;
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
        format: DType,
        shared_bytes_max: usize,
    ) -> Result<Self, KernelError> {
        let Heads { num_q, num_kv, head_dim } = heads;
        // K and V are copied 16 bytes at a time.
        let is_whole = (head_dim * format.bytes()).is_multiple_of(16) && head_dim > 0;
        let group = num_q / num_kv;
        let narrow = narrow(format, head_dim);
        let fits = narrow.shared_bytes <= shared_bytes_max;
        if !is_whole || head_dim > HEAD_DIM_MAX || group > narrow.rows || !fits {
            return Err(KernelError::Unsupported(format!(
                "attention of {num_q} query and {num_kv} KV heads of {head_dim} over {format:?}"
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
fn narrow(format: DType, head_dim: usize) -> Units {
    let sized = |name| Some((&ATTENTION_SIZED, name, if head_dim == 256 { 2 } else { 4 }));
    let found = match (format, head_dim) {
        (DType::F32, _) => return plain(head_dim),
        (DType::Bf16, 64) => sized("attention_units_bf16_64"),
        (DType::Bf16, 80) => sized("attention_units_bf16_80"),
        (DType::Bf16, 96) => sized("attention_units_bf16_96"),
        (DType::Bf16, 128) => sized("attention_units_bf16_128"),
        (DType::Bf16, 256) => sized("attention_units_bf16_256"),
        (DType::F16, 64) => sized("attention_units_f16_64"),
        (DType::F16, 80) => sized("attention_units_f16_80"),
        (DType::F16, 96) => sized("attention_units_f16_96"),
        (DType::F16, 128) => sized("attention_units_f16_128"),
        (DType::F16, 256) => sized("attention_units_f16_256"),
        _ => None,
    };
    let any = if format == DType::F16 { "attention_units_f16" } else { "attention_units_bf16" };
    let (source, name, slots) = found.unwrap_or((&ATTENTION, any, 2));
    tensor(source, name, head_dim, Shared { slots, rows: 16, warps: 4 })
}

/// The kernel of tiles of up to 64 score rows, where there is one.
fn wide(format: DType, head_dim: usize) -> Option<Units> {
    let name = match (format, head_dim) {
        (DType::Bf16, 64) => "attention_units_wide_bf16_64",
        (DType::Bf16, 80) => "attention_units_wide_bf16_80",
        (DType::Bf16, 96) => "attention_units_wide_bf16_96",
        (DType::Bf16, 128) => "attention_units_wide_bf16_128",
        (DType::Bf16, 256) => "attention_units_wide_bf16_256",
        _ => return None,
    };
    let slots = if head_dim == 256 { 2 } else { 3 };
    Some(tensor(&ATTENTION_SIZED, name, head_dim, Shared { slots, rows: 64, warps: 8 }))
}

/// What a kernel's place in shared memory is made of.
struct Shared {
    slots: usize,
    rows: usize,
    warps: u32,
}

/// A score row: a unit's scores and what sets rows apart, then maximum and sum.
const SCORE_ROW_BYTES: usize = UNIT as usize * 4 + 16 + 8;

/// `TensorMath` of attention_tensor.cuh.
fn tensor(
    source: &'static Source,
    name: &'static str,
    head_dim: usize,
    Shared { slots, rows, warps }: Shared,
) -> Units {
    let steps = head_dim.div_ceil(16);
    let ring = slots * 64 * (steps * 32 + 16);
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
