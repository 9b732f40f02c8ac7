//! Whether a model fits: asked when its files are open and before any weight is read.
//!
//! The sums are those of the load itself; what steps take as scratch a program tells that is recorded
//! over rooms in which nothing is.

use pagoda_kernels::device::{Device, DeviceMemory, Limits};
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;

use super::{LoadOptions, Recorder, kv_needs, limits, open_cpu, own_dtype};
use crate::memory::{GroupNeed, KvBudget, KvRequest, LeastNeed, least_kv};
use crate::model::buffers::{Buffers, activation_bytes};
use crate::model::error::LoadError;
use crate::model::files::Checkpoint;
use crate::model::spec::ModelSpec;
use crate::model::weights::{Formats, rooms};

/// What the KV cache is planned for, in `budget` bytes that come from the setting `kv`.
pub(super) fn kv_request<'a, D: Device>(
    device: &D,
    groups: &'a [GroupNeed],
    limits: &Limits,
    (kv, budget): (KvBudget, u64),
) -> KvRequest<'a> {
    KvRequest {
        groups,
        block_size: device.block_size() as u32,
        max_model_len: limits.max_model_len as u32,
        max_num_seqs: limits.max_seqs as u32,
        max_chunk: limits.max_tokens as u32,
        budget,
        setting: kv.setting(),
    }
}

/// The least that `checkpoint` takes of the host's memory on the CPU, before any of it is read.
pub fn least_on_cpu(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<LeastNeed, LoadError> {
    let Checkpoint { config, tensors, .. } = checkpoint;
    let limits = limits(config, options)?;
    let spec = ModelSpec::plan(config, limits.max_model_len as u32);
    let stored = tensors.stored_dtype(&spec.embedding_name());
    let dtype = options.dtype.unwrap_or_else(|| own_dtype(config, stored));
    let kv_dtype = options.kv_dtype.unwrap_or(KvFormat::Plain(dtype));
    let formats = Formats { dtype, quantization: options.quantization };
    least_need(&open_cpu(options)?, &spec, (&limits, formats, kv_dtype), options)
}

/// What is not there for the rest is not asked for its scratch: then that counts as none.
fn least_need<D: Device>(
    device: &D,
    spec: &ModelSpec,
    (limits, formats, kv_dtype): (&Limits, Formats, KvFormat),
    options: &LoadOptions,
) -> Result<LeastNeed, LoadError> {
    let needs = kv_needs(spec, kv_dtype, device.block_size());
    let kv = options.kv;
    let need = LeastNeed {
        weights: spec.weight_bytes(formats),
        activations: activation_bytes(spec, limits),
        scratch: 0,
        kv_cache: least_kv(kv, &kv_request(device, &needs, limits, (kv, 0)))?,
    };
    if options.beside.fits(&need, &[], kv, &options.beside.machine(0)).is_err() {
        return Ok(need);
    }
    let weights = rooms(device, spec, formats)?;
    let buffers = Buffers::rooms(device, spec, limits)
        .map_err(LoadError::device("allocating activations"))?;
    let recorder = Recorder { device, spec, weights: &weights, buffers: &buffers, kv_dtype };
    Ok(LeastNeed { scratch: recorder.scratch(limits)?.bytes, ..need })
}

/// Refuses what does not fit beside the other models before anything of it is in memory.
pub(super) fn fits_beside<D: Device>(
    device: &D,
    spec: &ModelSpec,
    of_step: (&Limits, Formats, KvFormat),
    options: &LoadOptions,
) -> Result<(), LoadError> {
    let need = least_need(device, spec, of_step, options)?;
    let (_, formats, _) = of_step;
    let smaller: &[Quantization] = match formats.quantization {
        None => &[Quantization::Q8_0, Quantization::Q4_0],
        Some(Quantization::Q8_0 | Quantization::Fp8) => &[Quantization::Q4_0],
        Some(_) => &[],
    };
    let weights = |quantization: &Quantization| {
        let formats = Formats { quantization: Some(*quantization), ..formats };
        (quantization.name(), spec.weight_bytes(formats))
    };
    let smaller: Vec<_> = smaller.iter().map(weights).collect();
    let machine = options.beside.machine(0);
    Ok(options.beside.fits(&need, &smaller, options.kv, &machine)?)
}

/// Refuses before minutes go into weights that a device with memory of its own cannot hold.
pub(super) fn fits_at_all(
    &DeviceMemory { free, total }: &DeviceMemory,
    spec: &ModelSpec,
    (limits, formats): (&Limits, Formats),
) -> Result<(), LoadError> {
    let needed = spec.weight_bytes(formats).saturating_add(activation_bytes(spec, limits));
    if needed <= free {
        return Ok(());
    }
    let what = format!("weights in {} and activations", formats.product().name());
    Err(LoadError::DeviceFull { what, needed, free, total })
}
