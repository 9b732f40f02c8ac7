//! The CUDA device: handwritten kernels, run by NVIDIA's driver or by the host's emulation.
//!
//! Load: [`CudaDevice`] copies weights to the device. Record: [`CudaProgram`] holds a list of ops.
//! Run: [`CudaExecutor`] brings a batch over and launches the list. A result's order of summation
//! depends on shapes alone, never on the number of rows, blocks or their timing.

/// What runs kernels.
mod driver;

/// The kernels' sources.
mod source;

/// The host's emulation.
mod emulated;
mod emulated_stream;

/// Handles of device memory.
pub mod memory;

/// Ops in the order of recording.
pub mod program;

/// Replays a program.
pub mod executor;

mod attention;
mod attention_plan;
mod embed;
mod gather;
mod graphs;
mod host_buffer;
mod inputs;
mod linear;
mod measure;
mod moe;
mod norm;
mod plain;
mod rope_store;
mod sample;
mod sample_slots;
mod sampler;
mod staging;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::device::{Device, KvSpec, Limits};
use crate::dtype::{DType, HostTensor};
use crate::error::KernelError;
use crate::ops::Stacking;

use driver::Driver;
use emulated::Emulated;
use executor::CudaExecutor;
use measure::Measure;
use memory::{CudaKv, CudaTensor, CudaVector, CudaWeight};
use program::CudaProgram;

/// A GPU as a device. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    driver: Arc<dyn Driver>,
    options: CudaOptions,
    block_size: usize,
    /// Blocks that run at once.
    blocks: u32,
}

/// What may be chosen of a GPU's arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Kernels are chosen by op, shape of the weight and types alone, never by the rows of a step:
    /// the same answer alone or in a crowd, at some cost.
    pub deterministic: bool,
}

/// Tokens per KV block: what the attention kernels copy at a time.
const BLOCK_SIZE: usize = 64;
const _: () = assert!(BLOCK_SIZE >= attention::BLOCK_SIZE_MIN);

/// Blocks at once that plans of the emulated device aim at: few, so that tiles are split in small
/// tests too.
const EMULATED_BLOCKS: u32 = 16;

impl CudaDevice {
    /// The host's emulation, which compiles into `folder` and orders threads by `seed`. For tests
    /// without a GPU; needs a C++ compiler; far too slow to serve.
    pub fn emulated(folder: &Path, seed: u64) -> Self {
        let driver = Arc::new(Emulated::new(folder, seed));
        let options = CudaOptions::default();
        CudaDevice { driver, options, block_size: BLOCK_SIZE, blocks: EMULATED_BLOCKS }
    }

    /// The same device, computing as `options` say.
    #[must_use]
    pub fn with_options(self, options: CudaOptions) -> Self {
        CudaDevice { options, ..self }
    }
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
        let mode = if self.options.deterministic { "deterministic" } else { "fast" };
        format!("cuda-unit{}-{mode}", attention::UNIT)
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
        format: DType,
    ) -> Result<CudaWeight, KernelError> {
        CudaWeight::pack(&self.driver, parts, stacking, format)
    }

    fn experts(
        &self,
        num_experts: usize,
        shape: (usize, usize),
        format: DType,
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

    fn scratch_bytes(&self, program: CudaProgram, limits: &Limits) -> Result<u64, KernelError> {
        let measure = Arc::new(Measure::default());
        let driver: Arc<dyn Driver> = Arc::clone(&measure) as Arc<dyn Driver>;
        drop(CudaExecutor::start(&driver, program, *limits, (self.options, self.blocks))?);
        Ok(measure.bytes())
    }

    fn executor(&self, program: CudaProgram, limits: Limits) -> Result<CudaExecutor, KernelError> {
        let mode = (self.options, self.blocks);
        let mut executor = CudaExecutor::start(&self.driver, program, limits, mode)?;
        executor.capture()?;
        Ok(executor)
    }
}
