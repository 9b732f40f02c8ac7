//! Qwen3: each query and key head is normed before rope; no biases unless asked for.

use super::{Family, PLAIN, Windows, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen3ForCausalLM"],
    qk_norm: true,
    windows: Windows::UpperLayers,
    dialects: &[&dialect::CHATML],
    ..PLAIN
};
