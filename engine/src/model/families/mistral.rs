//! Mistral 7B: Llama with a window in every layer (later versions have none).

use super::{Family, PLAIN, Windows, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["MistralForCausalLM"],
    windows: Windows::Always,
    dialects: &[&dialect::MISTRAL],
    ..PLAIN
};
