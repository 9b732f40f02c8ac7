//! The CUDA device: handwritten kernels, run by NVIDIA's driver or by the host's emulation.
//!
//! Load: [`CudaDevice`] copies weights to the device. Record: [`CudaProgram`] holds a list of ops.
//! Run: [`CudaExecutor`] brings a batch over and launches the list. A result's order of summation never
//! depends on timing; whether it may depend on the rows beside it is [`CudaOptions`]' to say.

/// What runs kernels.
mod driver;

/// The kernels' sources.
mod source;

/// The host's emulation.
mod emulated;
mod emulated_compiler;
mod emulated_stream;

/// NVIDIA's driver.
pub mod nvidia;

/// Handles of device memory.
pub mod memory;

/// Ops in the order of recording.
pub mod program;

/// Replays a program.
pub mod executor;

mod attention;
mod attention_hopper;
mod attention_layers;
mod attention_plan;
mod attention_split;
mod embed;
mod emulated_map;
mod expert_products;
mod few_rows;
mod gather;
mod graphs;
mod host_buffer;
mod inputs;
mod kv_copy;
mod linear;
mod linear_choice;
mod linear_hopper;
mod linear_hopper_quantized;
mod linear_library;
mod linear_tensor;
mod linear_trials;
mod measure;
mod moe;
mod norm;
mod plain;
mod product_library;
mod products;
mod quantize_rows;
mod quantized;
mod rope_store;
mod sample;
mod sample_slots;
mod sampler;
mod staging;
mod tensor_map;

/// What only hardware can show: parts of `benches`' program `gpu`.
#[cfg(any(test, feature = "suite"))]
pub mod suite;

#[cfg(any(test, feature = "suite"))]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::device::{Device, DeviceMemory, KvSpec, Limits, Scratch};
use crate::dtype::HostTensor;
use crate::error::KernelError;
use crate::ops::Stacking;
use crate::weight_format::WeightFormat;

use driver::Driver;
use emulated::Emulated;
use executor::CudaExecutor;
use linear_choice::Target;
use measure::Measure;
use memory::{CudaKv, CudaTensor, CudaVector, CudaWeight};
use nvidia::{Arch, KernelReport, Places};
use program::CudaProgram;

/// A GPU as a device. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    driver: Arc<dyn Driver>,
    block_size: usize,
    target: Target,
    /// Of the code: other cards add up in other ways.
    arch: Option<Arch>,
}

/// What may be chosen of a GPU's arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// The order of sums is chosen by op, shape of the weight and types alone, never by the rows of a
    /// step: the same answer alone or in a crowd, decoded or prefilled, at some cost.
    pub deterministic: bool,
}

/// Tokens per KV block: what the attention kernels copy at a time.
const BLOCK_SIZE: usize = 64;
const _: () = assert!(BLOCK_SIZE >= attention::BLOCK_SIZE_MIN);

/// Of the emulated device, for plans: few, so that tiles are split in small tests too.
const EMULATED_MULTIPROCESSORS: u32 = 8;

impl CudaDevice {
    /// The host's emulation, which compiles into `folder` and orders threads by `seed`. For tests
    /// without a GPU; needs a C++ compiler; far too slow to serve.
    pub fn emulated(folder: &Path, seed: u64) -> Self {
        let driver = Arc::new(Emulated::new(folder, seed));
        let target = Target::of(&*driver, EMULATED_MULTIPROCESSORS);
        CudaDevice { driver, block_size: BLOCK_SIZE, target, arch: None }
    }

    /// The same device, computing as `options` say.
    #[must_use]
    pub fn with_options(self, options: CudaOptions) -> Self {
        CudaDevice { target: Target { options, ..self.target }, ..self }
    }

    /// Takes a GPU, and makes all kernels ready for it. Tells in a line if minutes may go by.
    pub fn open(
        gpu: GpuOptions,
        places: &Places,
        told: &dyn Fn(&str),
    ) -> Result<(Self, KernelReport), KernelError> {
        Self::open_with(gpu, places, &source::SOURCES, told)
    }

    /// The same with the kernels of `sources` alone.
    fn open_with(
        gpu: GpuOptions,
        places: &Places,
        sources: &[&'static source::Source],
        told: &dyn Fn(&str),
    ) -> Result<(Self, KernelReport), KernelError> {
        let block_size = gpu.block_size.unwrap_or(BLOCK_SIZE);
        let sizes = attention::BLOCK_SIZE_MIN..=attention::UNIT as usize;
        if !block_size.is_power_of_two() || !sizes.contains(&block_size) {
            return Err(KernelError::Unsupported(format!(
                "a KV block of {block_size} tokens; on a GPU it must be a power of two from {} to {}",
                sizes.start(),
                sizes.end()
            )));
        }
        let (nvidia, report) = nvidia::open(gpu, places, sources, told)?;
        let target = Target::of(&nvidia, nvidia.gpu().multiprocessors);
        let (driver, arch) = (Arc::new(nvidia), Some(report.arch));
        Ok((CudaDevice { driver, block_size, target, arch }, report))
    }
}

/// How a GPU is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuOptions {
    /// Its number, as the driver counts.
    pub index: usize,
    /// Tokens per KV block: a power of two from 16 to 256; 64 if left open.
    pub block_size: Option<usize>,
    /// Whether each kernel starts when the one before it has ended, also on cards that would start it
    /// earlier: to measure what that gains.
    pub one_by_one: bool,
    /// Whether all products are kernels of our own, also where cuBLASLt is found.
    pub own_products: bool,
}

impl Device for CudaDevice {
    type Program = CudaProgram;
    type Executor = CudaExecutor;

    fn name(&self) -> String {
        self.driver.name()
    }

    fn block_size(&self) -> usize {
        self.block_size
    }

    fn numerics(&self) -> String {
        let arch = self.arch.map_or_else(|| "emulated".to_owned(), |arch| arch.to_string());
        let mode = match self.driver.product_library() {
            _ if self.target.options.deterministic => "deterministic".to_owned(),
            Some(library) => format!("fast-{}", library.name()),
            None => "fast".to_owned(),
        };
        // How products are cut depends on how many parts keep the card busy.
        let multiprocessors = self.target.multiprocessors;
        format!("cuda-{arch}-{multiprocessors}sm-unit{}-{mode}", attention::UNIT)
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, KernelError> {
        self.driver.memory()
    }

    fn tensor(&self, rows: usize, cols: usize) -> Result<CudaTensor, KernelError> {
        CudaTensor::new(&self.driver, rows, cols)
    }

    fn vector(&self, values: &[f32]) -> Result<CudaVector, KernelError> {
        CudaVector::new(&self.driver, values)
    }

    fn pack(
        &self,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
        format: WeightFormat,
    ) -> Result<CudaWeight, KernelError> {
        CudaWeight::pack(&self.driver, parts, stacking, format)
    }

    fn room(&self, shape: (usize, usize), format: WeightFormat) -> Result<CudaWeight, KernelError> {
        CudaWeight::zeroed(&self.driver, 1, shape, format)
    }

    fn experts(
        &self,
        num_experts: usize,
        shape: (usize, usize),
        format: WeightFormat,
    ) -> Result<CudaWeight, KernelError> {
        CudaWeight::zeroed(&self.driver, num_experts, shape, format)
    }

    fn pack_expert(
        &self,
        experts: &mut CudaWeight,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) -> Result<(), KernelError> {
        experts.pack_expert(expert, parts, stacking)
    }

    fn kv_cache(&self, spec: KvSpec) -> Result<CudaKv, KernelError> {
        CudaKv::new(&self.driver, spec, self.block_size)
    }

    fn program(&self) -> CudaProgram {
        CudaProgram::new()
    }

    fn scratch(&self, program: CudaProgram, limits: &Limits) -> Result<Scratch, KernelError> {
        let measure = Arc::new(Measure::of(&*self.driver));
        let driver: Arc<dyn Driver> = Arc::clone(&measure) as Arc<dyn Driver>;
        CudaExecutor::start(&driver, program, *limits, self.target)?.capture()?;
        Ok(measure.scratch())
    }

    fn executor(&self, program: CudaProgram, limits: Limits) -> Result<CudaExecutor, KernelError> {
        let mut executor = CudaExecutor::start(&self.driver, program, limits, self.target)?;
        executor.find_ways()?;
        executor.capture()?;
        Ok(executor)
    }
}
