//! Llama 2 and 3, and the many checkpoints that took their shape.

use super::{Family, PLAIN, dialect};

pub(super) const FAMILY: Family =
    Family { architectures: &["LlamaForCausalLM"], dialects: &[&dialect::LLAMA2], ..PLAIN };
