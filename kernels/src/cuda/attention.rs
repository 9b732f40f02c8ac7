//! `attention`: which kernels a layer takes, and launches of attention.cu, attention_sized.cu and
//! attention_fp8.cu.

use std::ops::Range;

use crate::cuda::attention_hopper::{HOPPER_ROWS, HopperUnits, Planes};
use crate::cuda::attention_plan::{AttentionPlan, PlanShape, TileKind};
use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear_choice::Target;
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

/// Mirrors `AttentionPiece` of attention_tile.cuh: a tile of rows and units of its keys, and how it
/// shares the tile with others. All zeros: nothing to do.
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
    pub(crate) parts_before: u32,
    pub(crate) num_pieces: u32,
    pub(crate) meeting: u32,
    pub(crate) unused: u32,
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
    /// Zeros, as many as the plan's room says.
    pub(crate) arrivals: DevicePointer,
    pub(crate) num_q: u32,
    pub(crate) num_kv: u32,
    /// Query heads of a block, see [`AttentionKernels::group`].
    pub(crate) group: u32,
    pub(crate) head_dim: u32,
    pub(crate) block_bits: u32,
    /// `u32::MAX`: all keys.
    pub(crate) window: u32,
    pub(crate) scale: f32,
    /// 0: none.
    pub(crate) soft_cap: f32,
}

// SAFETY: twelve words, as many as its alignment asks for.
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

/// The kernel of long queries.
#[derive(Clone, Copy, Debug)]
enum Wide {
    /// The bits of the narrow kernel.
    Tensor(Units),
    /// Bits of its own.
    Hopper(HopperUnits),
}

/// The kernels of layers of one kind: chosen when a model is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionKernels {
    heads: Heads,
    narrow: Units,
    wide: Option<Wide>,
    /// Blocks that run at once: of narrow tiles, of wide ones.
    blocks: [u32; 2],
    group: usize,
}

/// Blocks of a grid's second axis.
const PIECES_MAX: u32 = 65535;

impl AttentionKernels {
    /// The kernels for `heads` and a cache of `format`, of those that `target` can run.
    pub(crate) fn new(
        heads: Heads,
        format: impl Into<KvFormat>,
        target: &Target,
    ) -> Result<Self, KernelError> {
        let format = format.into();
        let Heads { num_q, num_kv, head_dim } = heads;
        // K and V are copied 16 bytes at a time.
        let is_whole = (head_dim * format.element_bytes()).is_multiple_of(16) && head_dim > 0;
        let narrow = narrow(format, head_dim);
        let fits = narrow.shared_bytes <= target.shared_bytes_max;
        if !is_whole || head_dim > HEAD_DIM_MAX || !fits {
            return Err(KernelError::Unsupported(format!(
                "attention of {num_q} query and {num_kv} KV heads of {head_dim} over a cache in {}",
                format.name()
            )));
        }
        let wide = Wide::of(format, head_dim, target);
        let of_wide = wide.map_or(1, |wide| target.blocks_at_once(wide.shared_bytes()));
        let blocks = [target.blocks_at_once(narrow.shared_bytes), of_wide];
        let group = largest_part(num_q / num_kv, narrow.rows);
        Ok(AttentionKernels { heads, narrow, wide, blocks, group })
    }

    /// Query heads of a block: those of a KV head or, where they are more than a narrow tile has score
    /// rows, an equal part of them.
    pub(crate) fn group(&self) -> u32 {
        self.group as u32
    }

    /// What plans for these kernels depend on, in layers of which a row sees `window` keys.
    pub(crate) fn plan_shape(&self, window: Option<u32>) -> PlanShape {
        let [narrow, wide] = self.blocks;
        let kind =
            |score_rows: usize, blocks| TileKind { rows: (score_rows / self.group) as u32, blocks };
        PlanShape {
            group: self.group as u32,
            groups: (self.heads.num_q / self.group) as u32,
            head_dim: self.heads.head_dim as u32,
            window,
            narrow: kind(self.narrow.rows, narrow),
            wide: self.wide.map(|units| kind(units.rows(), wide)),
            wide_in_parts: matches!(self.wide, Some(Wide::Hopper(_))),
        }
    }
}

impl Wide {
    /// Hopper's own, where bits may depend on a step's rows.
    fn of(format: KvFormat, head_dim: usize, target: &Target) -> Option<Self> {
        let is_free = target.is_hopper && !target.options.deterministic;
        let hopper = HopperUnits::new(format, head_dim).filter(|_| is_free).map(Wide::Hopper);
        let fits = |wide: &Wide| wide.shared_bytes() <= target.shared_bytes_max;
        let tensor = || wide(format, head_dim).map(Wide::Tensor).find(fits);
        hopper.filter(fits).or_else(tensor)
    }

    fn rows(&self) -> usize {
        match self {
            Wide::Tensor(units) => units.rows,
            Wide::Hopper(_) => HOPPER_ROWS,
        }
    }

    fn shared_bytes(&self) -> usize {
        match self {
            Wide::Tensor(units) => units.shared_bytes,
            Wide::Hopper(units) => units.shared_bytes(),
        }
    }
}

/// The largest part of `whole` of up to `most` that divides it.
fn largest_part(whole: usize, most: usize) -> usize {
    (1..=most.min(whole)).rev().find(|&part| whole.is_multiple_of(part)).unwrap_or(1)
}

impl Attention {
    /// Attends as `plan` says, whose pieces are at `pieces` on the device. A plane of the cache has
    /// `plane_rows` tokens, over all blocks and KV heads.
    ///
    /// # Safety
    /// Every pointer has what attention_tile.cuh says for the plan's batch; the plan was made for
    /// these heads, this window and the shape of `kernels`, which are those of the cache's format;
    /// blocks have [`BLOCK_SIZE_MIN`] tokens or more.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        kernels: &AttentionKernels,
        plan: &AttentionPlan,
        plane_rows: usize,
    ) -> Result<(), KernelError> {
        let groups = self.num_q / self.group;
        match kernels.wide {
            // SAFETY: the caller's promise.
            Some(Wide::Tensor(units)) => unsafe {
                self.launch_units(driver, &units, groups, plan.wide())
            },
            Some(Wide::Hopper(units)) => {
                let planes = Planes { keys: self.keys, values: self.values, rows: plane_rows };
                self.each_part(plan.wide(), |part, pieces| {
                    // SAFETY: the caller's promise.
                    unsafe { units.launch(driver, part, planes, [groups, pieces]) }
                })
            }
            None => Ok(()),
        }?;
        // SAFETY: the caller's promise.
        unsafe { self.launch_units(driver, &kernels.narrow, groups, plan.narrow()) }
    }

    /// Starts a kernel with `heads` blocks for each of a range of pieces.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_units(
        &self,
        driver: &dyn Driver,
        units: &Units,
        heads: u32,
        pieces: Range<u32>,
    ) -> Result<(), KernelError> {
        let kernel = Kernel::new(units.source, units.name, units.threads);
        self.each_part(pieces, |part, pieces| {
            let grid = Grid { blocks: [heads, pieces, 1], shared_bytes: units.shared_bytes };
            // SAFETY: the caller's promise.
            unsafe { launch(driver, &kernel, grid, part) }
        })
    }

    /// Calls `start` for as many pieces as a grid takes, and again for the next.
    fn each_part(
        &self,
        pieces: Range<u32>,
        start: impl Fn(&Attention, u32) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        grids(pieces).try_for_each(|pieces| {
            let skipped = pieces.start as usize * size_of::<AttentionPiece>();
            let part = Attention { pieces: self.pieces.offset(skipped), ..*self };
            start(&part, pieces.end - pieces.start)
        })
    }
}

/// The pieces of each grid.
fn grids(pieces: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let end = pieces.end;
    pieces.step_by(PIECES_MAX as usize).map(move |first| first..end.min(first + PIECES_MAX))
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
            return tensor(
                source,
                name,
                head_dim,
                Shared { format, slots: 2, rows: 16, warps: 4, queries_kept: false },
            );
        }
    };
    let slots = if head_dim == 256 { 2 } else { 4 };
    let shared = Shared { format, slots, rows: 16, warps: 4, queries_kept: false };
    tensor(sized(format), name, head_dim, shared)
}

/// The kernels of tiles of up to 64 score rows, where there are any: the one that copies farthest ahead
/// first.
fn wide(format: KvFormat, head_dim: usize) -> impl Iterator<Item = Units> {
    let found: &'static [(&'static str, usize)] = match (format, head_dim) {
        (Elements(DType::Bf16), 64) => &[("attention_units_wide_bf16_64", 3)],
        (Elements(DType::Bf16), 80) => &[("attention_units_wide_bf16_80", 3)],
        (Elements(DType::Bf16), 96) => {
            &[("attention_units_wide_bf16_96", 3), ("attention_units_wide_bf16_96_small", 2)]
        }
        (Elements(DType::Bf16), 128) => {
            &[("attention_units_wide_bf16_128", 3), ("attention_units_wide_bf16_128_small", 2)]
        }
        (Elements(DType::Bf16), 256) => &[("attention_units_wide_bf16_256", 2)],
        (Fp8, 64) => &[("attention_units_wide_fp8_64", 3)],
        (Fp8, 80) => &[("attention_units_wide_fp8_80", 3)],
        (Fp8, 96) => &[("attention_units_wide_fp8_96", 3)],
        (Fp8, 128) => &[("attention_units_wide_fp8_128", 3)],
        (Fp8, 256) => &[("attention_units_wide_fp8_256", 2)],
        _ => &[],
    };
    // Lanes keep their queries in registers, where those are enough.
    let queries_kept = format != Fp8 && head_dim <= 128;
    found.iter().map(move |&(name, slots)| {
        let shared = Shared { format, slots, rows: 64, warps: 8, queries_kept };
        tensor(sized(format), name, head_dim, shared)
    })
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
    queries_kept: bool,
}

/// A score row: a unit's scores and what sets rows apart.
const SCORE_ROW_BYTES: usize = UNIT as usize * 4 + 16;

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// `TensorMath` of attention_tensor.cuh, and the ring that feeds it.
fn tensor(
    source: &'static Source,
    name: &'static str,
    head_dim: usize,
    Shared { format, slots, rows, warps, queries_kept }: Shared,
) -> Units {
    let steps = head_dim.div_ceil(16);
    let chunk = CHUNK * (steps * 32 + 16);
    let ring = match format {
        Elements(_) => slots * chunk,
        Fp8 => slots * format.head_bytes(CHUNK, head_dim) + chunk,
    };
    let queries = if queries_kept { 0 } else { rows * steps * 64 };
    let shared_bytes = ring + queries + rows * SCORE_ROW_BYTES;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_pieces_than_a_grid_takes_have_several() {
        let parts = |pieces: Range<u32>| grids(pieces).collect::<Vec<_>>();
        assert!(parts(7..7).is_empty());
        assert_eq!(parts(3..PIECES_MAX + 3).len(), 1);
        let two = [3..PIECES_MAX + 3, PIECES_MAX + 3..2 * PIECES_MAX];
        assert_eq!(parts(3..2 * PIECES_MAX), two);
        let many = parts(10..2 * PIECES_MAX + 11);
        assert_eq!(many[2..], parts(2 * PIECES_MAX + 10..2 * PIECES_MAX + 11));
    }
}
