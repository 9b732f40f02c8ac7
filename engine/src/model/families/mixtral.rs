//! Mixtral: Mistral with experts in every layer, whose chosen weights always sum to 1.

use super::{Family, PLAIN, Preset, TensorNames, Windows, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["MixtralForCausalLM"],
    fields: &[("num_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")],
    defaults: &[("norm_topk_prob", Preset::Flag(true)), ("rope_theta", Preset::Number(1e6))],
    windows: Windows::Always,
    sparse: true,
    dialects: &[&dialect::MISTRAL],
    tensors: TensorNames {
        router: "model.layers.{layer}.block_sparse_moe.gate",
        expert_gate: "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1",
        expert_up: "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3",
        expert_down: "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
        ..PLAIN.tensors
    },
    ..PLAIN
};
