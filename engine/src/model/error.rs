//! Why a model could not be loaded. Whoever started the server reads it, so each names its place.

use pagoda_kernels::error::KernelError;

use super::config::ConfigError;
use super::source::SourceError;
use crate::memory::MemoryError;

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
    /// The device refused, while doing `what`.
    #[error("{what}: {source}")]
    Device {
        /// What was being done.
        what: String,
        /// What the device said.
        source: KernelError,
    },
}

impl LoadError {
    /// Says what was being done when the device refused.
    pub(crate) fn device(what: impl Into<String>) -> impl FnOnce(KernelError) -> LoadError {
        let what = what.into();
        move |source| LoadError::Device { what, source }
    }
}
