//! Qwen2 and Qwen2.5: biases on query, key and value; a window in the upper layers if asked for.

use super::{AttentionBias, Family, PLAIN, Windows, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen2ForCausalLM"],
    bias: AttentionBias::QkvOnly,
    windows: Windows::UpperLayers,
    dialects: &[&dialect::CHATML],
    ..PLAIN
};
