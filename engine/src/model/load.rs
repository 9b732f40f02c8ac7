//! Loads an instance: opens, plans, packs, plans memory, records, starts the executor.
//!
//! The one path for every source and device. Memory is planned once the weights are in place and
//! before anything of the KV cache is allocated.

use pagoda_kernels::cpu::isa::Isa;
use pagoda_kernels::cpu::{CpuDevice, CpuOptions};
use pagoda_kernels::device::{Device, Executor, KvSpec, Limits, Scratch};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;

use super::buffers::{Buffers, activation_bytes};
use super::config::{Generation, ModelConfig, read_generation};
use super::decoder::Decoder;
use super::error::LoadError;
use super::files::{Checkpoint, ModelFiles, ModelSource};
use super::info::{InstanceInfo, KvGroupInfo};
use super::spec::{KvGroup, ModelSpec};
use super::weights::{Formats, Progress, Weights, pack};
use crate::memory::{
    Beside, FixedBytes, GroupNeed, KvBudget, KvPlan, MachineMemory, ModelMemory, kv_budget,
    least_kv, plan_kv,
};
use crate::runner::{DeviceRunner, Runner};

/// Whether it fits.
mod fit;

mod summary;

pub use fit::least_on_cpu;
use fit::{fits_at_all, fits_beside, kv_request};
use summary::summarize;

/// How an instance is loaded. `None` takes the default named.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// Type of the packed weights; the checkpoint's.
    pub dtype: Option<DType>,
    /// How the weights of products are quantized; not at all.
    pub quantization: Option<Quantization>,
    /// How the KV cache stores its elements; as the weights do.
    pub kv_dtype: Option<KvFormat>,
    /// Tokens of one sequence; what the checkpoint promises.
    pub max_model_len: Option<u32>,
    /// Sequences of one step; [`DEFAULT_MAX_NUM_SEQS`].
    pub max_num_seqs: Option<u32>,
    /// Rows of one step; [`DEFAULT_MAX_NUM_BATCHED_TOKENS`].
    pub max_num_batched_tokens: Option<u32>,
    /// Most entries of a top list of log-probabilities.
    pub max_logprobs: u32,
    /// Memory of the KV cache.
    pub kv: KvBudget,
    /// Workers of the CPU's team; one a core.
    pub threads: Option<u32>,
    /// Instruction set by name; the widest there is.
    pub isa: Option<String>,
    /// Tokens of a KV block, a power of two from 16; the device's.
    pub block_size: Option<u32>,
    /// What other models of this process hold.
    pub beside: Beside,
}

/// Sequences of one step, unless asked otherwise.
pub const DEFAULT_MAX_NUM_SEQS: u32 = 64;
/// Rows of one step, unless asked otherwise.
pub const DEFAULT_MAX_NUM_BATCHED_TOKENS: u32 = 512;
/// Share of the memory, unless asked otherwise.
pub const DEFAULT_MEMORY_SHARE: f64 = 0.7;
/// Logits rows of one step at least, so that prompt log-probabilities come in chunks.
const MIN_LOGITS_ROWS: u32 = 16;

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            dtype: None,
            quantization: None,
            kv_dtype: None,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            max_logprobs: 20,
            kv: KvBudget::Share(DEFAULT_MEMORY_SHARE),
            threads: None,
            isa: None,
            block_size: None,
            beside: Beside::default(),
        }
    }
}

/// A model that is ready to run steps.
pub struct LoadedModel {
    /// Runs its steps.
    pub runner: Box<dyn Runner>,
    /// What the rest of the engine may know of it.
    pub info: InstanceInfo,
    /// For the text half of the engine.
    pub files: ModelFiles,
    /// Lines for the start-up summary.
    pub summary: String,
    /// What it holds.
    pub memory: ModelMemory,
}

/// Loads a model on the CPU.
pub fn load(
    source: &ModelSource,
    options: &LoadOptions,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LoadError> {
    load_checkpoint(Checkpoint::open(source)?, options, progress)
}

/// Loads a checkpoint that is open already on the CPU.
pub fn load_checkpoint(
    checkpoint: Checkpoint,
    options: &LoadOptions,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LoadError> {
    load_on(&open_cpu(options)?, checkpoint, options, progress)
}

fn open_cpu(options: &LoadOptions) -> Result<CpuDevice, LoadError> {
    let isa = match options.isa.as_deref() {
        None => None,
        Some(name) => Some(Isa::available().find(|isa| isa.name() == name).ok_or_else(|| {
            let known: Vec<_> = Isa::available().map(Isa::name).collect();
            let reason = format!("{name:?} is not one of this machine's: {}", known.join(", "));
            LoadError::Setting { setting: "isa", reason }
        })?),
    };
    let defaults = CpuOptions::default();
    let block_size = options.block_size.map_or(defaults.block_size, |size| size as usize);
    let threads = options.threads.map_or(defaults.threads, |threads| threads as usize);
    CpuDevice::new(CpuOptions { threads, isa, block_size, ..defaults })
        .map_err(LoadError::device("opening the CPU"))
}

/// Loads `checkpoint` on `device`.
pub fn load_on<D: Device>(
    device: &D,
    checkpoint: Checkpoint,
    options: &LoadOptions,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LoadError>
where
    D::Executor: 'static,
{
    let limits = limits(&checkpoint.config, options)?;
    let spec = ModelSpec::plan(&checkpoint.config, limits.max_model_len as u32);
    load_spec(device, checkpoint, &spec, options, progress)
}

/// Loads the weights of `checkpoint` as the layers of `spec`, planned from its configuration.
pub fn load_spec<D: Device>(
    device: &D,
    checkpoint: Checkpoint,
    spec: &ModelSpec,
    options: &LoadOptions,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LoadError>
where
    D::Executor: 'static,
{
    let loaded = load_planned(device, checkpoint, spec, options, progress);
    loaded.map_err(|error| error.with_memory(|| device.memory().ok().flatten()))
}

fn load_planned<D: Device>(
    device: &D,
    checkpoint: Checkpoint,
    spec: &ModelSpec,
    options: &LoadOptions,
    progress: &dyn Fn(Progress),
) -> Result<LoadedModel, LoadError>
where
    D::Executor: 'static,
{
    let Checkpoint { place, config, files, tensors } = checkpoint;
    let generation_file = format!("{place}/generation_config.json");
    let generation =
        read_generation(&generation_file, files.generation_config.as_deref(), &config)?;
    let limits = limits(&config, options)?;
    let stored = tensors.stored_dtype(&spec.embedding_name());
    let dtype = options.dtype.unwrap_or_else(|| own_dtype(&config, stored));
    let kv_dtype = options.kv_dtype.unwrap_or(KvFormat::Plain(dtype));
    let formats = Formats { dtype, quantization: options.quantization };
    match device.memory().map_err(LoadError::device("asking for free memory"))? {
        Some(memory) => fits_at_all(&memory, spec, (&limits, formats))?,
        None => fits_beside(device, spec, (&limits, formats, kv_dtype), options)?,
    }
    if let Some(part) = config.family.nested {
        tracing::info!(
            part,
            "the checkpoint holds more than a text model: only that part is loaded"
        );
    }
    let weights = pack(device, spec, tensors.as_ref(), formats, progress)?;
    drop(tensors);

    // A device's own memory is taken as soon as it is asked for; the host's when it is first used.
    let own_memory = device.memory().map_err(LoadError::device("asking for free memory"))?;
    let buffers =
        Buffers::new(device, spec, &limits).map_err(LoadError::device("allocating activations"))?;
    let recorder = Recorder { device, spec, weights: &weights, buffers: &buffers, kv_dtype };
    let scratch = recorder.scratch(&limits)?;
    let fixed = FixedBytes {
        weights: weights.bytes,
        activations: activation_bytes(spec, &limits),
        scratch: scratch.bytes,
        page_locked: scratch.page_locked_bytes,
    };
    let needs = kv_needs(spec, kv_dtype, device.block_size());
    let beside = match own_memory {
        // What others hold of a device's own memory is not free there.
        Some(_) => Beside::default(),
        None => options.beside,
    };
    let machine = own_memory.map_or_else(|| beside.machine(weights.bytes), MachineMemory::from);
    let request = |budget| kv_request(device, &needs, &limits, (options.kv, budget));
    let least = least_kv(options.kv, &request(0))?;
    let budget = kv_budget(options.kv, &machine, (&fixed, least), &beside)?;
    let plan = plan_kv(&request(budget))?;
    let program = recorder.program(&plan.num_blocks)?;
    let executor =
        device.executor(program, limits).map_err(LoadError::device("starting the executor"))?;
    let found = executor.found();
    let runner = Box::new(DeviceRunner::new(executor));
    let loaded = Loaded { generation, limits, formats, kv_dtype, weight_bytes: weights.bytes };
    let mut info = loaded.info(device, &needs, spec, &plan);
    info.depth = runner.depth() as u32;
    if !found.numerics.is_empty() {
        info.numerics = format!("{}, {}", info.numerics, found.numerics);
    }
    let mut summary = summarize(&place, config.quantization.as_ref(), &info, &plan, &fixed);
    for line in found.lines {
        summary.push_str("\nleft aside  ");
        summary.push_str(&line);
    }
    let FixedBytes { weights, activations, scratch, page_locked } = fixed;
    let (kv_cache, is_devices) = (plan.bytes, own_memory.is_some());
    let memory = ModelMemory { weights, activations, scratch, kv_cache, page_locked, is_devices };
    Ok(LoadedModel { runner, info, files, summary, memory })
}

/// The largest step, from settings and what the checkpoint promises.
fn limits(config: &ModelConfig, options: &LoadOptions) -> Result<Limits, LoadError> {
    let refuse = |setting, reason| Err(LoadError::Setting { setting, reason });
    let promised = config.rope.promised_len();
    let max_model_len = match (options.max_model_len, promised) {
        (Some(asked), Some(promised)) if asked > promised => {
            let reason = format!("{asked} is beyond the {promised} tokens of the checkpoint");
            return refuse("max-model-len", reason);
        }
        (Some(asked), _) => asked,
        (None, _) => config.longest(),
    };
    let max_seqs = options.max_num_seqs.unwrap_or(DEFAULT_MAX_NUM_SEQS);
    let default_tokens = DEFAULT_MAX_NUM_BATCHED_TOKENS.max(max_seqs);
    let max_tokens = options.max_num_batched_tokens.unwrap_or(default_tokens);
    if max_tokens < max_seqs {
        let reason = format!("{max_tokens} rows are fewer than max-num-seqs, which is {max_seqs}");
        return refuse("max-num-batched-tokens", reason);
    }
    for (setting, value) in [
        ("max-model-len", max_model_len),
        ("max-num-seqs", max_seqs),
        ("max-num-batched-tokens", max_tokens),
    ] {
        if !(1..=MAX_SETTING).contains(&value) {
            return refuse(setting, format!("{value} is not within 1 to {MAX_SETTING}"));
        }
    }
    Ok(Limits {
        max_tokens: max_tokens as usize,
        max_seqs: max_seqs as usize,
        max_logits_rows: max_seqs.max(MIN_LOGITS_ROWS.min(max_tokens)) as usize,
        vocab: config.vocab,
        max_model_len: max_model_len as usize,
        max_top: (options.max_logprobs as usize).min(config.vocab),
    })
}

/// Bound on settings that size buffers, far beyond any machine.
const MAX_SETTING: u32 = 1 << 26;

/// The type of a checkpoint whose embedding is stored as `stored`.
pub(super) fn own_dtype(config: &ModelConfig, stored: Option<DType>) -> DType {
    stored.or(config.dtype).unwrap_or(DType::F32)
}

/// The cache of each group; blocks beyond those given are 0.
fn kv_specs(
    spec: &ModelSpec,
    format: KvFormat,
    num_blocks: &[u32],
) -> impl Iterator<Item = KvSpec> {
    spec.groups.iter().enumerate().map(move |(index, group)| KvSpec {
        num_layers: group.num_layers,
        num_kv_heads: group.num_kv_heads,
        head_dim: group.head_dim,
        format,
        num_blocks: num_blocks.get(index).map_or(0, |blocks| *blocks as usize),
    })
}

/// What each group needs.
fn kv_needs(spec: &ModelSpec, format: KvFormat, block_size: usize) -> Vec<GroupNeed> {
    let need = |(kv, group): (KvSpec, &KvGroup)| GroupNeed {
        kind: group.kind,
        bytes_per_block: kv.bytes_per_block(block_size) as u64,
    };
    kv_specs(spec, format, &[]).zip(&spec.groups).map(need).collect()
}

/// What a program is recorded from, but for the number of KV blocks.
struct Recorder<'a, D: Device> {
    device: &'a D,
    spec: &'a ModelSpec,
    weights: &'a Weights<D>,
    buffers: &'a Buffers<D>,
    kv_dtype: KvFormat,
}

impl<D: Device> Recorder<'_, D> {
    /// Allocates the KV cache and records the decoder over it.
    fn program(&self, num_blocks: &[u32]) -> Result<D::Program, LoadError> {
        let Recorder { device, spec, weights, buffers, kv_dtype } = *self;
        let kv = kv_specs(spec, kv_dtype, num_blocks)
            .map(|kv| device.kv_cache(kv))
            .collect::<Result<Vec<_>, _>>()
            .map_err(LoadError::device("allocating the KV cache"))?;
        let decoder = Decoder { spec, weights, kv: &kv, buffers };
        decoder.record(device).map_err(LoadError::device("recording the decoder"))
    }

    /// What steps take beside the buffers: the same program says it over a cache of one block.
    fn scratch(&self, limits: &Limits) -> Result<Scratch, LoadError> {
        let program = self.program(&vec![1; self.spec.groups.len()])?;
        let scratch = self.device.scratch(program, limits);
        scratch.map_err(LoadError::device("planning scratch"))
    }
}

/// Numbers that [`InstanceInfo`] takes from a load.
struct Loaded {
    generation: Generation,
    limits: Limits,
    formats: Formats,
    kv_dtype: KvFormat,
    weight_bytes: u64,
}

impl Loaded {
    fn info<D: Device>(
        self,
        device: &D,
        needs: &[GroupNeed],
        spec: &ModelSpec,
        plan: &KvPlan,
    ) -> InstanceInfo {
        let groups = spec.groups.iter().zip(needs).zip(&plan.num_blocks);
        let groups = groups.map(|((group, need), num_blocks)| KvGroupInfo {
            kind: group.kind,
            num_layers: group.num_layers as u32,
            num_blocks: *num_blocks,
            bytes_per_block: need.bytes_per_block,
        });
        let Loaded { generation, limits, formats, kv_dtype, weight_bytes } = self;
        let Formats { dtype, quantization } = formats;
        let weights = match quantization {
            None => format!("{dtype:?}"),
            Some(quantization) => format!("{quantization:?} beside {dtype:?}"),
        };
        InstanceInfo {
            max_model_len: limits.max_model_len as u32,
            vocab: limits.vocab as u32,
            block_size: device.block_size() as u32,
            groups: groups.collect(),
            max_num_seqs: limits.max_seqs as u32,
            max_num_batched_tokens: limits.max_tokens as u32,
            max_logits_rows: limits.max_logits_rows as u32,
            max_logprobs: limits.max_top as u32,
            numerics: format!("{}, weights {weights}, KV {}", device.numerics(), kv_dtype.name()),
            eos_token_ids: generation.eos_token_ids,
            default_sampling: generation.sampling,
            dtype,
            quantization,
            kv_dtype,
            weight_bytes,
            depth: 1,
            device: device.name(),
        }
    }
}

#[cfg(test)]
mod tests;
