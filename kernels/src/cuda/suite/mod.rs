//! What only hardware can show, as parts that run on any driver: a card, or the emulation at tiny sizes.
//!
//! For `benches`' program `gpu`. A part gives findings as it goes, so that a stop loses nothing of them.
//! It compares and measures; where results are kept, and what comes first, is the program's.

mod ceilings;
mod costs;
mod finding;
mod library;
mod ops;
mod pool;
mod shapes;
mod shares;
mod stopwatch;
mod wrappers;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::cuda::driver::Driver;
use crate::cuda::linear_choice::Target;
use crate::cuda::nvidia::{self, Arch, BuildReport, KernelReport, Places};
use crate::cuda::source::{SOURCES, SUITE_SOURCES};
use crate::cuda::{CudaDevice, GpuOptions};
use crate::error::KernelError;

pub use finding::{Check, Figure, Finding, Note};
pub use shapes::{PeerTask, peer_tasks};

/// The parts that need this crate's insides, in the order of their worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Each wrapper of ptx.cuh against the emulation, bit for bit or within a stated bound.
    Wrappers,
    /// Each wrapper of ptx90.cuh against what it is defined to do, on Hopper.
    Hopper,
    /// Random shapes of each op against float64.
    Ops,
    /// Products by a library, where one is found, against float64.
    Library,
    /// Read and copy bandwidth, matrix and multiply-add rates, the cost of a launch.
    Ceilings,
    /// Nodes of graphs, copies from and to the host, marks.
    Costs,
    /// Each kernel's share of the ceilings over the shapes of models, of those that bf16 takes.
    Kernels,
    /// The same for other types, caches, sizes of heads and cards, and for one order of sums.
    Formats,
    /// The same for sampling over vocabularies.
    Sampling,
    /// The same for routing and the products of experts.
    Experts,
    /// The same for products with quantized weights.
    Quantized,
}

/// How much a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// What the emulation does in seconds. Figures mean nothing.
    Tiny,
    /// What a card is asked.
    Full,
}

/// A device and how much to ask of it.
#[derive(Debug)]
pub struct Suite {
    driver: Arc<dyn Driver>,
    target: Target,
    size: Size,
    seed: u64,
}

/// What a part is given.
struct Run<'a> {
    driver: &'a Arc<dyn Driver>,
    target: Target,
    size: Size,
    seed: u64,
    keeps_going: &'a dyn Fn() -> bool,
    begins: &'a dyn Fn(&str),
    put: &'a mut dyn FnMut(Finding),
}

impl Suite {
    /// Takes a GPU with the kernels that a suite runs, as [`CudaDevice::open`] does for all others.
    pub fn open(
        gpu: GpuOptions,
        places: &Places,
        told: &dyn Fn(&str),
    ) -> Result<(CudaDevice, KernelReport), KernelError> {
        let sources: Vec<_> = SOURCES.iter().chain(&SUITE_SOURCES).copied().collect();
        CudaDevice::open_with(gpu, places, &sources, told)
    }

    /// Compiles those kernels for `arch` into the bytes of a file that [`Places::kernels`] may name.
    pub fn build_kernels(
        arch: Arch,
        places: &Places,
    ) -> Result<(Vec<u8>, BuildReport), KernelError> {
        let sources: Vec<_> = SOURCES.iter().chain(&SUITE_SOURCES).copied().collect();
        nvidia::build_sources(&sources, &[arch], places)
    }

    /// A suite on `device`. `seed` draws shapes and numbers.
    pub fn new(device: &CudaDevice, size: Size, seed: u64) -> Self {
        Suite { driver: Arc::clone(&device.driver), target: device.target, size, seed }
    }

    /// On a driver of a test.
    #[cfg(test)]
    pub(crate) fn of(driver: Arc<dyn Driver>, target: Target, size: Size) -> Self {
        Suite { driver, target, size, seed: 1 }
    }

    /// Runs `part`, giving each finding to `put`. Between findings it asks whether it `keeps_going`;
    /// returns whether it came to its end. A case that may fail or hang is told to `begins` before it runs.
    /// An error is the device's: nothing after it can be believed.
    pub fn run(
        &self,
        part: Part,
        keeps_going: &dyn Fn() -> bool,
        begins: &dyn Fn(&str),
        put: &mut dyn FnMut(Finding),
    ) -> Result<bool, KernelError> {
        let Suite { driver, target, size, seed } = self;
        let (target, size, seed) = (*target, *size, *seed);
        let mut run = Run { driver, target, size, seed, keeps_going, begins, put };
        match part {
            Part::Wrappers => wrappers::run(&mut run),
            Part::Hopper => ops::run_hopper(&mut run),
            Part::Ops => ops::run(&mut run),
            Part::Library => library::run(&mut run),
            Part::Ceilings => ceilings::run(&mut run),
            Part::Costs => costs::run(&mut run),
            Part::Kernels => shares::run(&mut run),
            Part::Formats => shares::formats::run(&mut run),
            Part::Sampling => shares::sampling::run(&mut run),
            Part::Experts => shares::experts::run(&mut run),
            Part::Quantized => shares::quantized::run(&mut run),
        }
    }

    /// What every wrapper gives on this device, as [`Part::Wrappers`] expects it: made by the emulation.
    pub fn expectations(&self) -> Result<Vec<u8>, KernelError> {
        wrappers::expectations(&self.driver)
    }
}
