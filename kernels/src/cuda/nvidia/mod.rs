//! NVIDIA's driver: the real thing behind [`crate::cuda::driver::Driver`].
//!
//! Start: [`Places`] says where things may lie, `System` opens the driver, `cubins` finds or compiles
//! the kernels, and `Nvidia` loads all of them. Run: launches and copies on one stream. The driver and
//! the compiler are opened at run time, so that one program runs with and without them. No hardware
//! has run this yet: it is tested through a driver and a compiler of our own (`tests`).

/// What code is compiled for.
mod arch;

/// Where libraries and files may lie.
mod places;

/// Libraries that are opened at run time.
mod library;

/// The driver's functions.
mod api;

/// What the driver says of this machine.
mod system;

/// The run-time compiler.
mod nvrtc;

/// Names of compiled code.
mod key;

/// Compiled code on disk.
mod cubin_cache;

/// Compiled code in a file that travels.
mod built_file;

/// Code for a card, wherever it comes from.
mod cubins;

/// Tensors as the copy engine knows them.
mod tensor_map;

/// Loaded code.
mod modules;

/// Marks and graphs of a stream.
mod stream_marks;

/// A GPU that runs kernels.
mod driver;

/// What there is on this machine.
mod findings;

#[cfg(test)]
mod tests;

pub use arch::{Arch, NoArch};
pub use cubins::{BuildReport, KernelReport, build};
pub use findings::{CacheFound, Findings, Found};
pub use places::Places;
pub use system::Gpu;

use crate::cuda::source::Source;
use crate::error::KernelError;

#[cfg(any(test, feature = "suite"))]
pub(crate) use cubins::build_sources;
pub(crate) use driver::Nvidia;

/// Takes the GPU `index` with the kernels of `sources` loaded. Tells in a line if minutes may go by.
pub(crate) fn open(
    index: usize,
    places: &Places,
    sources: &[&'static Source],
    told: &dyn Fn(&str),
) -> Result<(Nvidia, KernelReport), KernelError> {
    let system = system::System::open(places)?;
    let nvidia = Nvidia::open(&system, index)?;
    let (capability, cuda_major) = (nvidia.gpu().capability, system.version / 1000);
    let card = cubins::Card { capability, cuda_major };
    let (cubins, report) = cubins::prepare(sources, card, places, told)?;
    Ok((nvidia.with_kernels(&cubins)?, report))
}
