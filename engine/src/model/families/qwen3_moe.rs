//! Qwen3-MoE: Qwen3 with experts in some layers, chosen by softmax.

use super::{Family, PLAIN, Windows};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen3MoeForCausalLM"],
    qk_norm: true,
    windows: Windows::Switched,
    sparse: true,
    ..PLAIN
};
