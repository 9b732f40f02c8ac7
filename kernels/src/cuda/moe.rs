//! `moe`: launches of moe.cu and moe_group.cu around products.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::{MOE, MOE_GROUP};
use crate::error::KernelError;

/// Mirrors `Route` of moe.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Route {
    pub(crate) scores: DevicePointer,
    pub(crate) experts: DevicePointer,
    pub(crate) weights: DevicePointer,
    pub(crate) num_experts: u32,
    pub(crate) num_chosen: u32,
    /// 0: softmax, 1: sigmoid.
    pub(crate) routing: u32,
    pub(crate) renormalize: u32,
}

static ROUTE: Kernel<Route> = Kernel::new(&MOE, "moe_route", 32);

impl Route {
    /// Chooses for `rows` rows.
    ///
    /// # Safety
    /// Every pointer has what moe.cu says for `rows` rows; at most as many are chosen as there are.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, rows: u32) -> Result<(), KernelError> {
        // A score and a mark for each expert, and two lists of the chosen.
        let shared_bytes = self.num_experts as usize * 5 + self.num_chosen as usize * 8;
        let grid = Grid { blocks: [rows, 1, 1], shared_bytes };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &ROUTE, grid, self) }
    }
}

/// Mirrors `Combine` of moe.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Combine {
    pub(crate) outer: DevicePointer,
    pub(crate) weights: DevicePointer,
    pub(crate) x: DevicePointer,
    pub(crate) cols: u32,
    pub(crate) num_chosen: u32,
}

const COMBINE_THREADS: u32 = 128;

static COMBINE: Kernel<Combine> = Kernel::new(&MOE, "moe_combine", COMBINE_THREADS);

impl Combine {
    /// Adds the experts' outputs to `rows` rows.
    ///
    /// # Safety
    /// Every pointer has what moe.cu says for `rows` rows.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, rows: u32) -> Result<(), KernelError> {
        let parts = self.cols.div_ceil(COMBINE_THREADS);
        let grid = Grid { blocks: [rows, parts, 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &COMBINE, grid, self) }
    }
}

/// Mirrors `Group` of moe_group.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Group {
    pub(crate) experts: DevicePointer,
    pub(crate) order: DevicePointer,
    pub(crate) tiles: DevicePointer,
    pub(crate) num_pairs: u32,
    pub(crate) num_experts: u32,
    pub(crate) num_tiles: u32,
    pub(crate) tile_rows: u32,
}

/// Bytes of `RowTile` of linear_tile.cuh.
pub(crate) const ROW_TILE_BYTES: usize = 16;

const GROUP_THREADS: u32 = 1024;

static GROUP: Kernel<Group> = Kernel::new(&MOE_GROUP, "moe_group", GROUP_THREADS);

impl Group {
    /// Tiles that pairs may fill: whole ones, and a last one for each expert that has any.
    pub(crate) fn tiles_max(num_pairs: u32, num_experts: u32, tile_rows: u32) -> u32 {
        num_pairs / tile_rows + num_experts.min(num_pairs)
    }

    /// Puts pairs in order.
    ///
    /// # Safety
    /// Every pointer has what moe_group.cu says; experts are below `num_experts`; there are as many
    /// tiles as [`Self::tiles_max`] says.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver) -> Result<(), KernelError> {
        // A count for each expert, two sums, and what each warp finds.
        let shared_bytes = (self.num_experts + 2 + GROUP_THREADS / 32) as usize * 4;
        let grid = Grid { blocks: [self.num_experts, 1, 1], shared_bytes };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &GROUP, grid, self) }
    }
}
