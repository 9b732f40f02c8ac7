//! `gather_rows`: launches of gather.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::GATHER;
use crate::error::KernelError;

/// Mirrors `Gather` of gather.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Gather {
    pub(crate) x: DevicePointer,
    pub(crate) rows: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) cols: u32,
}

const THREADS: u32 = 128;

static KERNEL: Kernel<Gather> = Kernel::new(&GATHER, "gather_rows", THREADS);

impl Gather {
    /// Gathers `rows` rows.
    ///
    /// # Safety
    /// Every pointer has what gather.cu says for `rows` rows.
    pub(crate) unsafe fn launch(&self, driver: &dyn Driver, rows: u32) -> Result<(), KernelError> {
        let grid = Grid { blocks: [rows, self.cols.div_ceil(THREADS), 1], shared_bytes: 0 };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &KERNEL, grid, self) }
    }
}
