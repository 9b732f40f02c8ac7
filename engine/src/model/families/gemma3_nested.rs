//! Gemma 3 beside a vision tower: the same decoder, described in an object of its own. Only it is
//! loaded.

use super::{Family, TensorNames, dialect, gemma3};

pub(super) const FAMILY: Family = Family {
    architectures: &["Gemma3ForConditionalGeneration"],
    nested: Some("text_config"),
    dialects: &[&dialect::GEMMA3],
    tensors: TensorNames { root: "language_model.", ..gemma3::FAMILY.tensors },
    ..gemma3::FAMILY
};
