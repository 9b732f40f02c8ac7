//! Why a model could not be loaded. Whoever started the server reads it, so each names its place.

use pagoda_kernels::device::DeviceMemory;
use pagoda_kernels::error::KernelError;

use super::config::ConfigError;
use super::source::SourceError;
use crate::memory::{MemoryError, gib};

/// A model that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A configuration file of the checkpoint.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor, or a file that cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The settings ask for what this checkpoint or machine does not have.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting, as the user knows it.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Not enough memory for the KV cache.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What must be in the device's memory does not fit.
    #[error(
        "no room for {what}: {needed} needed, {free} free of the device's {total}; {advice}",
        needed = gib(*.needed), free = gib(*.free), total = gib(*.total),
        advice = if needed > total {
            "use a smaller model, a dtype of fewer bytes, or a device with more memory"
        } else {
            "end what else uses the device, or use a smaller model or a dtype of fewer bytes"
        }
    )]
    DeviceFull {
        /// What does not fit.
        what: String,
        /// Its bytes.
        needed: u64,
        /// Bytes that nobody has.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The device refused, while doing `what`.
    #[error("{what}: {source}")]
    Device {
        /// What was being done.
        what: String,
        /// What the device said.
        source: KernelError,
    },
}

/// What a file says, as far as a person reads on: an error repeats no more of it.
pub(crate) fn readable(words: impl Into<String>) -> String {
    const BYTES_MAX: usize = 1000;
    let mut words = words.into();
    if words.len() > BYTES_MAX {
        words.truncate(words.floor_char_boundary(BYTES_MAX));
        words.push('…');
    }
    words
}

impl LoadError {
    /// Says what was being done when the device refused.
    pub(crate) fn device(what: impl Into<String>) -> impl FnOnce(KernelError) -> LoadError {
        let what = what.into();
        move |source| LoadError::Device { what, source }
    }

    /// Says how much memory the device has, if that was the reason and the memory is its own.
    pub(crate) fn with_memory(self, memory: impl FnOnce() -> Option<DeviceMemory>) -> LoadError {
        let LoadError::Device { source: KernelError::OutOfMemory { what, bytes }, .. } = &self
        else {
            return self;
        };
        match memory() {
            Some(DeviceMemory { free, total }) => {
                LoadError::DeviceFull { what: what.clone(), needed: *bytes as u64, free, total }
            }
            None => self,
        }
    }
}
