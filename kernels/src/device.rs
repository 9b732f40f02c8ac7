//! What a device offers at load time, and how a recorded program runs.
//!
//! Load: allocate, pack, plan memory. Then record a program ([`crate::ops::Ops`]) once. Then
//! [`Executor`] replays it: `launch` returns while the device works, `finish` waits.

use crate::batch::Batch;
use crate::dtype::HostTensor;
use crate::error::KernelError;
use crate::kv_format::KvFormat;
use crate::ops::{Ops, Stacking};
use crate::sampling::SampleOutput;
use crate::weight_format::WeightFormat;

/// A device: the CPU's worker team or a GPU.
pub trait Device: Clone + Send + 'static {
    /// Records ops for this device.
    type Program: Ops;
    /// Replays a program.
    type Executor: Executor;

    /// Human-readable name with instruction set and threads, for the start-up summary.
    fn name(&self) -> String;

    /// Tokens per KV block: a power of two, at least 16.
    fn block_size(&self) -> usize;

    /// Identifies the arithmetic: equal strings promise equal bits. Part of every block key.
    fn numerics(&self) -> String;

    /// The device's own memory, now. `None`: it shares the host's.
    fn memory(&self) -> Result<Option<DeviceMemory>, KernelError> {
        Ok(None)
    }

    /// A zeroed activation buffer, `[rows, cols]`.
    fn tensor(&self, rows: usize, cols: usize) -> Result<Tensor<Self>, KernelError>;

    /// One-dimensional f32 parameters.
    fn vector(&self, values: &[f32]) -> Result<Vector<Self>, KernelError>;

    /// Packs matrices into one weight stored in `format`, quantizing as [`crate::quantize`] says.
    /// Parts must agree in columns (and in rows when interleaved).
    fn pack(
        &self,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
        format: WeightFormat,
    ) -> Result<Weight<Self>, KernelError>;

    /// Room for a matrix, `[rows, cols]`, zeroed: for programs that are recorded and never run.
    fn room(
        &self,
        shape: (usize, usize),
        format: WeightFormat,
    ) -> Result<Weight<Self>, KernelError>;

    /// Room for the matrices of all experts, `[num_experts, rows, cols]`, zeroed.
    fn experts(
        &self,
        num_experts: usize,
        shape: (usize, usize),
        format: WeightFormat,
    ) -> Result<Experts<Self>, KernelError>;

    /// Packs the matrix of one expert, whose parts together have the shape that was asked for: one
    /// at a time, so that a load never holds the files of all.
    fn pack_expert(
        &self,
        experts: &mut Experts<Self>,
        expert: usize,
        parts: &[HostTensor<'_>],
        stacking: Stacking,
    ) -> Result<(), KernelError>;

    /// The cache of one KV group.
    fn kv_cache(&self, spec: KvSpec) -> Result<Kv<Self>, KernelError>;

    /// An empty program.
    fn program(&self) -> Self::Program;

    /// What replaying `program` takes for up to `limits`, beside the program's own buffers. Does not
    /// depend on the number of KV blocks.
    fn scratch(&self, program: Self::Program, limits: &Limits) -> Result<Scratch, KernelError>;

    /// Starts replaying `program` for up to `limits`.
    fn executor(
        &self,
        program: Self::Program,
        limits: Limits,
    ) -> Result<Self::Executor, KernelError>;
}

/// Bytes that steps take beside a program's buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Of the memory that programs are in.
    pub bytes: u64,
    /// Of the host's memory beside it, which may not be swapped out.
    pub page_locked_bytes: u64,
}

/// Bytes of memory that is a device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Nobody's.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Activations of a device's program.
pub type Tensor<D> = <<D as Device>::Program as Ops>::Tensor;
/// Parameters of a device's program.
pub type Vector<D> = <<D as Device>::Program as Ops>::Vector;
/// Packed weights of a device's program.
pub type Weight<D> = <<D as Device>::Program as Ops>::Weight;
/// Packed experts of a device's program.
pub type Experts<D> = <<D as Device>::Program as Ops>::Experts;
/// KV caches of a device's program.
pub type Kv<D> = <<D as Device>::Program as Ops>::Kv;

/// Shape of one KV group's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers in the group.
    pub num_layers: usize,
    /// Nkv.
    pub num_kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// How elements are stored.
    pub format: KvFormat,
    /// Blocks of [`Device::block_size`] tokens.
    pub num_blocks: usize,
}

impl KvSpec {
    /// Bytes of one block over all layers of the group: the only place with this formula.
    pub fn bytes_per_block(&self, block_size: usize) -> usize {
        let head_bytes = self.format.head_bytes(block_size, self.head_dim);
        2 * self.num_layers * self.num_kv_heads * head_bytes
    }
}

/// The largest step that an executor must run. Everything is allocated for it at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// T.
    pub max_tokens: usize,
    /// S and slots.
    pub max_seqs: usize,
    /// R.
    pub max_logits_rows: usize,
    /// V.
    pub vocab: usize,
    /// Tokens of one sequence, prompt and output.
    pub max_model_len: usize,
    /// Entries of [`SampleOutput::top`] a row.
    pub max_top: usize,
}

/// Replays a recorded program over batches, one at a time.
pub trait Executor: Send {
    /// How many steps may be launched and not yet finished.
    fn depth(&self) -> usize {
        1
    }

    /// Whether a token's K and V have the same bits when it runs alone behind its sequence (decode)
    /// and when it runs as one of many rows of a prompt (prefill).
    fn decode_equals_prefill(&self) -> bool {
        true
    }

    /// What it found out while it started.
    fn found(&self) -> Found {
        Found::default()
    }

    /// Starts a step. Returns at once; the buffers come back from [`Executor::finish`].
    fn launch(&mut self, step: Step) -> Result<(), KernelError>;

    /// Waits for the oldest launched step and gives its buffers back with the output filled.
    fn finish(&mut self) -> Result<Step, KernelError>;
}

/// What an executor found out while it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Identifies what was chosen of the arithmetic by trying: equal strings here and of
    /// [`Device::numerics`] promise equal bits. Empty if nothing was.
    pub numerics: String,
    /// For people: what is there and was left aside, and why. A line each.
    pub lines: Vec<String>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numerics = if self.numerics.is_empty() { "nothing chosen" } else { &self.numerics };
        write!(f, "{numerics}")?;
        self.lines.iter().try_for_each(|line| write!(f, "; {line}"))
    }
}

/// The buffers of one step, moved to the device's threads and back: nothing is copied or shared.
#[derive(Debug, Default)]
pub struct Step {
    /// What to run.
    pub batch: Batch,
    /// What it gave.
    pub output: SampleOutput,
}
