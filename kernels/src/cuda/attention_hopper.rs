//! Attention of many rows on Hopper: launches of attention_hopper.cu.

use crate::cuda::attention::Attention;
use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::linear_hopper::ring_room;
use crate::cuda::source::ATTENTION_HOPPER;
use crate::cuda::tensor_map::{Axis, LINE_BYTES, TensorMap, TensorMapSpec};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::KvFormat;

/// Mirrors `HopperAttention` of attention_hopper.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct HopperAttention {
    keys: TensorMap,
    values: TensorMap,
    attention: Attention,
}

/// A kernel of attention_hopper.cu.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HopperUnits {
    name: &'static str,
    head_dim: usize,
    format: DType,
}

/// Score rows of a tile: two warpgroups'.
pub(crate) const HOPPER_ROWS: usize = 128;
/// A producer's warpgroup and two of consumers.
const THREADS: u32 = 3 * 128;
const SLOTS_MAX: usize = 8;
/// Tokens of a box at most.
const BOX_MAX: usize = 64;

/// K and V of a layer: the address of each plane, and the tokens that a plane has room for, over all
/// blocks and KV heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    pub(crate) keys: DevicePointer,
    pub(crate) values: DevicePointer,
    pub(crate) rows: usize,
}

impl HopperUnits {
    /// The kernel for heads of `head_dim` over a cache of `format`, where there is one.
    pub(crate) fn new(format: KvFormat, head_dim: usize) -> Option<Self> {
        let KvFormat::Plain(format) = format else { return None };
        let name = match (format, head_dim) {
            (DType::Bf16, 64) => "attention_hopper_bf16_64",
            (DType::Bf16, 80) => "attention_hopper_bf16_80",
            (DType::Bf16, 96) => "attention_hopper_bf16_96",
            (DType::Bf16, 128) => "attention_hopper_bf16_128",
            (DType::Bf16, 256) => "attention_hopper_bf16_256",
            (DType::F16, 64) => "attention_hopper_f16_64",
            (DType::F16, 80) => "attention_hopper_f16_80",
            (DType::F16, 96) => "attention_hopper_f16_96",
            (DType::F16, 128) => "attention_hopper_f16_128",
            (DType::F16, 256) => "attention_hopper_f16_256",
            _ => return None,
        };
        Some(HopperUnits { name, head_dim, format })
    }

    /// Shared memory of a block: `HopperHeads` of attention_hopper.cu.
    pub(crate) fn shared_bytes(&self) -> usize {
        let panels = self.head_dim.div_ceil(64);
        let keys = if panels > 2 { 64 } else { 128 };
        let (queries, slot) = (HOPPER_ROWS * panels * LINE_BYTES, keys * panels * LINE_BYTES);
        let slots = (ring_room(queries) / slot).min(SLOTS_MAX);
        // Two barriers a slot.
        queries + slots * (slot + 16)
    }

    /// Attends to the pieces that `attention` names, so many, for each of `groups` groups of heads.
    ///
    /// # Safety
    /// As for [`Attention::launch`]; the planes have their rows, of [`Self`]'s heads and format.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        attention: &Attention,
        planes: Planes,
        [groups, pieces]: [u32; 2],
    ) -> Result<(), KernelError> {
        let element = self.format.bytes();
        let tokens = (1 << attention.block_bits as usize).min(BOX_MAX);
        let axes = [
            Axis { size: self.head_dim, stride: element, taken: LINE_BYTES / element },
            Axis { size: planes.rows, stride: self.head_dim * element, taken: tokens },
        ];
        let map = |address| {
            let format = self.format;
            driver.tensor_map(&TensorMapSpec { address, format, axes: &axes, swizzled: true })
        };
        let hopper = HopperAttention {
            keys: map(planes.keys)?,
            values: map(planes.values)?,
            attention: *attention,
        };
        let kernel = Kernel::new(&ATTENTION_HOPPER, self.name, THREADS);
        let grid = Grid { blocks: [groups, pieces, 1], shared_bytes: self.shared_bytes() };
        // SAFETY: the caller's promise; the maps are of these planes.
        unsafe { launch(driver, &kernel, grid, &hopper) }
    }
}
