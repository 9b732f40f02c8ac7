//! The model families: each a table of differences from a plain decoder, and its tensors' names.
//!
//! The registry below has one line a family; with the family's own file that is all there is of it.
//! Nothing outside this folder names an architecture. [`crate::model::config`] and
//! [`crate::model::spec`] read the tables; the decoder never does.

/// How a family writes a conversation.
pub mod dialect;
/// What a table holds.
mod family;
/// What tensors are called.
mod names;

pub use self::dialect::{Appended, Dialect, Digits, Vocabulary, VocabularyKind};
pub use self::family::{AttentionBias, Family, Preset, Windows};
pub use self::names::{GateUp, PostNorms, Qkv, TensorNames};

use self::family::PLAIN;

/// Declares the modules and lists their tables.
macro_rules! families {
    ($($(#[$when:meta])? mod $family:ident;)*) => {
        $($(#[$when])? mod $family;)*
        /// Every family there is.
        const FAMILIES: &[&Family] = &[$($(#[$when])? &$family::FAMILY,)*];
    };
}

families! {
    mod llama;
    mod mistral;
    mod mixtral;
    mod qwen;
    mod qwen2;
    mod qwen3;
    mod qwen3_moe;
    mod gemma;
    mod gemma2;
    mod gemma3;
    mod gemma3_nested;
    mod phi3;
    mod chatglm;
    mod glm;
    mod glm4;
    #[cfg(test)] mod toy;
}

/// The family of an architecture's name.
pub fn find(architecture: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.architectures.contains(&architecture))
}

/// All architectures' names, in the registry's order.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.architectures).copied()
}

#[cfg(test)]
mod tests;
