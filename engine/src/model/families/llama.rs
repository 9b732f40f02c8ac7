//! Llama 2 and 3, and the many checkpoints that took their shape.

use super::{Family, PLAIN};

pub(super) const FAMILY: Family = Family { architectures: &["LlamaForCausalLM"], ..PLAIN };
