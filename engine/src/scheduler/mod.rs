//! Who computes what in the next step.

/// Settings of the scheduler and of the waiting queue.
pub mod settings;
