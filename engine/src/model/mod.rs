//! From a checkpoint to a recorded decoder.
//!
//! Runs once per instance, before the first request, in the order of the modules below: open the
//! files, read the configuration, find the family's table, plan the layers, pack the weights,
//! record the program. Nothing here runs in a step.

/// The checkpoint's files, opened and bounded.
pub mod files;

/// config.json and generation_config.json, typed.
pub mod config;

/// The families: tables of differences, and tensor names.
pub mod families;

/// Rotary embedding as one table.
pub mod rope;

/// A model as a list of layers and KV groups.
pub mod spec;

/// What weights and KV caches take.
pub mod size;

/// Where tensors come from.
pub mod source;

/// Tensors into the device's packed layout.
pub mod weights;

mod buffers;

/// The loop over layers, recorded.
mod decoder;

/// All of it, in order.
pub mod load;

/// What the rest of the engine may know about a loaded model.
pub mod info;

/// Why a model could not be loaded.
pub mod error;

pub use self::error::LoadError;
pub use self::files::{Checkpoint, ModelFiles, ModelSource};
pub use self::info::InstanceInfo;
pub use self::load::{LoadOptions, LoadedModel, load, load_checkpoint, load_on};
pub use self::weights::Progress;
