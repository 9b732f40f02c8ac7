//! From a checkpoint to a recorded decoder.
//!
//! Runs once per instance, before the first request: read the configuration, plan the layers,
//! pack the weights, record the program. Nothing here runs in a step.

/// What the rest of the engine may know about a loaded model.
pub mod info;
