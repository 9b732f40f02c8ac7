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

/// The driver's functions that are called.
mod api;

/// What the driver says of this machine.
mod system;

/// The run-time compiler.
mod nvrtc;

/// NVIDIA's products.
mod cublaslt;

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

/// Page-locked memory, and uploads through it.
mod host_memory;

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

use crate::cuda::GpuOptions;
use crate::cuda::source::Source;
use crate::error::KernelError;

#[cfg(any(test, feature = "suite"))]
pub(crate) use cubins::build_sources;
pub(crate) use driver::Nvidia;

/// Takes a GPU with the kernels of `sources` loaded. Tells in a line if minutes may go by.
pub(crate) fn open(
    gpu: GpuOptions,
    places: &Places,
    sources: &[&'static Source],
    told: &dyn Fn(&str),
) -> Result<(Nvidia, KernelReport), KernelError> {
    let system = system::System::open(places)?;
    let mut nvidia = Nvidia::open(&system, gpu.index)?;
    if gpu.one_by_one {
        nvidia = nvidia.without_overlap();
    }
    let (capability, cuda_major) = (nvidia.gpu().capability, system.version / 1000);
    let card = cubins::Card { capability, cuda_major };
    let (cubins, report) = cubins::prepare(sources, card, places, told)?;
    nvidia = nvidia.with_kernels(&cubins)?;
    if !gpu.own_products {
        // Nothing needs it; `doctor` tells why it is not there.
        if let Ok(library) = cublaslt::CublasLt::find(places, Some(cuda_major))
            && let Err(why) = nvidia.use_library(library)
        {
            told(&format!("cuBLASLt is left aside: {why}"));
        }
    }
    Ok((nvidia, report))
}
