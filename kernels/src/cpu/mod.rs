//! The CPU device: a worker team, packed weights, and kernels for each instruction set.
//!
//! Load: [`CpuDevice`] packs weights and plans memory. Record: [`CpuProgram`] holds a list of
//! commands. Run: [`CpuExecutor`] replays the list over batches with its team. Ops never allocate,
//! never cut a sum over k, and never look at the number of threads when they choose arithmetic.

/// Aligned memory, activations shared by a team.
pub mod buffer;

/// Which instruction set the kernels use.
pub mod isa;

/// Lanes of f32.
mod simd;

/// exp, sigmoid, tanh, activations.
mod math;

/// Workers, barrier, parking.
mod team;

/// The KV cache's storage.
pub mod kv;

/// Packed weights: panels of sixteen output columns.
pub mod weight;

/// Commands in the order of recording.
pub mod program;

/// A team that replays a program.
pub mod executor;

/// What this machine can do at most.
pub mod ceilings;

mod cells;
mod command;

mod advance;
mod attention;
mod embed;
mod gather;
mod kv_copy;
mod linear;
mod moe;
mod norm;
mod rope;
mod sample;

#[cfg(test)]
mod test_team;

use crate::device::{Device, KvSpec, Limits, Scratch};
use crate::dtype::HostTensor;
use crate::error::KernelError;
use crate::ops::Stacking;
use crate::weight_format::WeightFormat;

use buffer::{Activation, Parameters};
use executor::CpuExecutor;
use isa::Isa;
use kv::KvCache;
use program::CpuProgram;
use weight::PackedWeight;

/// How a CPU device is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Workers of a team; 0 takes one per core that this process may use.
    pub threads: usize,
    /// Instruction set; `None` takes the widest that the machine has.
    pub isa: Option<Isa>,
    /// Tokens per KV block: a power of two, at least 16.
    pub block_size: usize,
    /// Keys that attention reduces at a time: a multiple of `block_size`. Part of the numerics.
    pub attention_unit: usize,
}

impl Default for CpuOptions {
    fn default() -> Self {
        CpuOptions { threads: 0, isa: None, block_size: 32, attention_unit: 256 }
    }
}

/// The CPU as a device. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuDevice {
    threads: usize,
    isa: Isa,
    block_size: usize,
    attention_unit: usize,
}

impl CpuDevice {
    /// Checks the options against this machine.
    pub fn new(options: CpuOptions) -> Result<Self, KernelError> {
        let isa = options.isa.unwrap_or_else(Isa::detect).checked()?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let CpuOptions { block_size, attention_unit, .. } = options;
        if threads > THREADS_MAX {
            return Err(KernelError::Unsupported(format!(
                "{threads} threads; at most {THREADS_MAX} are supported"
            )));
        }
        if !block_size.is_power_of_two() || !(16..=4096).contains(&block_size) {
            return Err(KernelError::Unsupported(format!(
                "a KV block of {block_size} tokens; it must be a power of two from 16 to 4096"
            )));
        }
        if attention_unit == 0 || !attention_unit.is_multiple_of(block_size) {
            return Err(KernelError::Unsupported(format!(
                "attention units of {attention_unit} keys; they must be a multiple of the KV \
                 block's {block_size} tokens"
            )));
        }
        Ok(CpuDevice { threads, isa, block_size, attention_unit })
    }

    /// Workers of each team.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Keys that attention reduces at a time.
    pub fn attention_unit(&self) -> usize {
        self.attention_unit
    }
}

/// Bound on [`CpuOptions::threads`].
const THREADS_MAX: usize = 1024;

impl Device for CpuDevice {
    type Program = CpuProgram;
    type Executor = CpuExecutor;

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.isa.name(), self.threads)
    }

    fn block_size(&self) -> usize {
        self.block_size
    }

    /// Threads and block size are absent: they do not change bits.
    fn numerics(&self) -> String {
        format!("cpu-{}-unit{}", self.isa.name(), self.attention_unit)
    }

    fn tensor(&self, rows: usize, cols: usize) -> Result<Activation, KernelError> {
        Activation::new(rows, cols)
    }

    fn vector(&self, values: &[f32]) -> Result<Parameters, KernelError> {
        Parameters::new(values)
    }

    fn pack(
        &self,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
        format: WeightFormat,
    ) -> Result<PackedWeight, KernelError> {
        PackedWeight::pack(parts, stacking, format)
    }

    fn room(
        &self,
        shape: (usize, usize),
        format: WeightFormat,
    ) -> Result<PackedWeight, KernelError> {
        PackedWeight::zeroed(1, shape, format)
    }

    fn experts(
        &self,
        num_experts: usize,
        (rows, cols): (usize, usize),
        format: WeightFormat,
    ) -> Result<PackedWeight, KernelError> {
        PackedWeight::zeroed(num_experts, (rows, cols), format)
    }

    fn pack_expert(
        &self,
        experts: &mut PackedWeight,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) -> Result<(), KernelError> {
        experts.pack_expert(expert, parts, stacking)
    }

    fn kv_cache(&self, spec: KvSpec) -> Result<KvCache, KernelError> {
        KvCache::new(spec, self.block_size)
    }

    fn program(&self) -> CpuProgram {
        CpuProgram::new(self.attention_unit)
    }

    fn scratch(&self, program: CpuProgram, limits: &Limits) -> Result<Scratch, KernelError> {
        let bytes = CpuExecutor::scratch_bytes(program, limits, self.threads)? as u64;
        Ok(Scratch { bytes, page_locked_bytes: 0 })
    }

    fn executor(&self, program: CpuProgram, limits: Limits) -> Result<CpuExecutor, KernelError> {
        CpuExecutor::start(program, limits, self.isa, self.threads)
    }
}
