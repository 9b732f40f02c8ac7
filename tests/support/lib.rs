//! What the end-to-end tests share.

/// The step loop against a model whose outcome has a closed form.
pub mod simulation;
