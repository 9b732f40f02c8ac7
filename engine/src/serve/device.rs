//! What a start runs on: the CPU, or a GPU with its kernels ready.
//!
//! `auto` takes a GPU when one can be used; whoever gets the CPU instead is told why, in one line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pagoda_kernels::cuda::nvidia::{KernelReport, Places};
use pagoda_kernels::cuda::{CudaDevice, CudaOptions, GpuOptions};
use pagoda_kernels::error::KernelError;

use crate::config::{DeviceChoice, DeviceSettings, SchedulingSettings};
use crate::model::load::DEFAULT_MEMORY_SHARE;
use crate::serve::load::StartError;

/// The device of an instance.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// The CPU.
    Cpu {
        /// Why no GPU, if nobody asked for the CPU.
        instead: Option<String>,
    },
    /// A GPU.
    Gpu(CudaDevice, KernelReport),
}

/// The place on GPUs: a process serves one model there. Two would each measure the card's free
/// memory as theirs and neither would yield its stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct GpuPlace(Arc<AtomicBool>);

/// A model is on the GPU. Dropping it makes the place free.
#[derive(Debug)]
pub(crate) struct OnGpu(GpuPlace);

impl GpuPlace {
    fn take(&self) -> Option<OnGpu> {
        let was_taken = self.0.swap(true, Ordering::SeqCst);
        (!was_taken).then(|| OnGpu(self.clone()))
    }
}

impl Drop for OnGpu {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::SeqCst);
    }
}

/// Why a second model gets no GPU.
const GPU_IS_TAKEN: &str = "another model of this process is on the GPU, and one is served there: \
                            give this one device=cpu, or unload that one";

/// What settings are when they are left open.
pub(super) struct Defaults {
    /// `None`: the loader's.
    pub(super) max_num_seqs: Option<u32>,
    /// `None`: the loader's.
    pub(super) max_num_batched_tokens: Option<u32>,
    pub(super) memory_share: f64,
}

/// Sequences of one step on a GPU: decode reads all weights for one as for many.
const GPU_MAX_NUM_SEQS: u32 = 256;
/// Rows of one step on a GPU.
const GPU_MAX_NUM_BATCHED_TOKENS: u32 = 2048;
/// Share of a GPU's memory: as vLLM has it.
const GPU_MEMORY_SHARE: f64 = 0.9;

impl Chosen {
    /// Opens what the settings name, unless it is a GPU whose place is taken.
    pub(crate) fn open_in(
        settings: &DeviceSettings,
        place: &GpuPlace,
    ) -> Result<(Self, Option<OnGpu>), StartError> {
        match (settings.device, place.take()) {
            (DeviceChoice::Auto, None) => {
                Ok((Chosen::Cpu { instead: Some(GPU_IS_TAKEN.into()) }, None))
            }
            (DeviceChoice::Gpu(_), None) => {
                Err(StartError::Setting { setting: "device", reason: GPU_IS_TAKEN.into() })
            }
            (_, taken) => {
                let chosen = Chosen::open(settings)?;
                let is_gpu = matches!(chosen, Chosen::Gpu(..));
                Ok((chosen, taken.filter(|_| is_gpu)))
            }
        }
    }

    /// Opens what the settings name.
    pub(crate) fn open(settings: &DeviceSettings) -> Result<Self, StartError> {
        match settings.device {
            DeviceChoice::Cpu => Ok(Chosen::Cpu { instead: None }),
            DeviceChoice::Auto => match open_gpu(0, settings) {
                Ok(gpu) => Ok(gpu),
                Err(why) => {
                    let why = why.to_string();
                    // A compiler's words are for whoever asks for the GPU.
                    let line = why.lines().next().unwrap_or_default();
                    Ok(Chosen::Cpu { instead: Some(line.to_owned()) })
                }
            },
            DeviceChoice::Gpu(index) => open_gpu(index, settings).map_err(|why| {
                let reason = format!("cuda:{index} cannot be used: {why}");
                StartError::Setting { setting: "device", reason }
            }),
        }
    }

    /// Lines for the start-up summary, each after a line break.
    pub(super) fn summary(&self) -> String {
        match self {
            Chosen::Cpu { instead: None } => String::new(),
            Chosen::Cpu { instead: Some(why) } => format!("\nno GPU      {why}"),
            Chosen::Gpu(_, report) => format!("\nkernels     {report}"),
        }
    }

    /// Settings that nobody wrote.
    pub(super) fn defaults(&self, scheduling: &SchedulingSettings) -> Defaults {
        match self {
            Chosen::Cpu { .. } => Defaults {
                max_num_seqs: None,
                max_num_batched_tokens: None,
                memory_share: DEFAULT_MEMORY_SHARE,
            },
            Chosen::Gpu(..) => {
                let (seqs, tokens) = (scheduling.max_num_seqs, scheduling.max_num_batched_tokens);
                Defaults {
                    // Each sequence of a step has a row at least.
                    max_num_seqs: Some(tokens.unwrap_or(u32::MAX).min(GPU_MAX_NUM_SEQS)),
                    max_num_batched_tokens: Some(seqs.unwrap_or(0).max(GPU_MAX_NUM_BATCHED_TOKENS)),
                    memory_share: GPU_MEMORY_SHARE,
                }
            }
        }
    }
}

fn open_gpu(index: usize, settings: &DeviceSettings) -> Result<Chosen, KernelError> {
    let places = Places::of_this_machine(settings.kernels.clone());
    let block_size = settings.block_size.map(|size| size as usize);
    let told = |line: &str| tracing::info!("{line}");
    // Opened where nobody may ask it, the library would take memory for nothing.
    let own_products = settings.deterministic || !settings.cublaslt;
    let gpu = GpuOptions { index, block_size, own_products, ..GpuOptions::default() };
    let (device, report) = CudaDevice::open(gpu, &places, &told)?;
    let options = CudaOptions { deterministic: settings.deterministic };
    Ok(Chosen::Gpu(device.with_options(options), report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::Written;

    #[test]
    fn a_second_model_on_a_gpu_is_refused_in_words_and_auto_takes_the_cpu() {
        let settings = |device: &str| {
            let written = Written { device: Some(device.into()), ..Written::default() };
            written.resolve().unwrap().models.remove(0).device
        };
        let place = GpuPlace::default();
        let first = place.take().unwrap();
        let refused = Chosen::open_in(&settings("cuda"), &place).unwrap_err().to_string();
        assert!(refused.starts_with("device: another model") && refused.contains("device=cpu"));
        let (chosen, seat) = Chosen::open_in(&settings("auto"), &place).unwrap();
        assert!(chosen.summary().contains("another model of this process is on the GPU"));
        assert!(seat.is_none());
        drop(first);
        let (_, seat) = Chosen::open_in(&settings("cpu"), &place).unwrap();
        assert!(seat.is_none() && place.take().is_some(), "who is on the CPU takes no place");
    }
}
