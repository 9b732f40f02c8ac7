//! Norms: launches of norm.cu.

use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::source::NORM;
use crate::error::KernelError;

/// Mirrors `Norm` of norm.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Norm {
    pub(crate) x: DevicePointer,
    pub(crate) weight: DevicePointer,
    pub(crate) out: DevicePointer,
    pub(crate) cols: u32,
    pub(crate) eps: f32,
}

/// What happens to the normed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// Stored as f32.
    Store,
    /// Added to what is there.
    Add,
}

const THREADS: u32 = 512;
/// One float a warp.
const SHARED_BYTES: usize = THREADS as usize / 32 * 4;

impl Norm {
    /// Norms `rows` rows.
    ///
    /// # Safety
    /// Every pointer has what norm.cu says for `rows` rows.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        put: Put,
        rows: u32,
    ) -> Result<(), KernelError> {
        let name = match put {
            Put::Store => "norm_f32",
            Put::Add => "norm_add",
        };
        let grid = Grid { blocks: [rows, 1, 1], shared_bytes: SHARED_BYTES };
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &Kernel::new(&NORM, name, THREADS), grid, self) }
    }
}
