//! Qwen3-MoE: Qwen3 with experts in some layers, chosen by softmax.

use super::{Family, PLAIN, Windows, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen3MoeForCausalLM"],
    qk_norm: true,
    windows: Windows::Switched,
    sparse: true,
    dialects: &[&dialect::CHATML],
    ..PLAIN
};
