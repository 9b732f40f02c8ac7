//! What the end-to-end tests share.

#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, reason = "test code")]

/// The step loop against a model whose outcome has a closed form.
pub mod simulation;

/// Greedy answers of a loaded model.
pub mod answers;

/// The golden checkpoints and the values that transformers computes from them.
pub mod golden;

/// Prompts through a runner, without a scheduler: log-probabilities of every position.
pub mod prompts;

/// Log-probabilities of the goldens under other settings.
pub mod logprobs;

/// Sums that the built-in model was not trained on.
pub mod sums;

/// Requests that keep every part of a step busy.
pub mod steady_load;

/// What a stranger writes, handed to what reads it: targets for fuzzers.
pub mod fuzz;
