//! GLM-4 as transformers has it: pairs of neighbours turn, in the first half of each head.

use pagoda_kernels::ops::RopeStyle;

use super::{AttentionBias, Family, GateUp, PLAIN, Preset, TensorNames, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["GlmForCausalLM"],
    defaults: &[("partial_rotary_factor", Preset::Number(0.5))],
    bias: AttentionBias::QkvByConfig,
    rope_style: RopeStyle::Interleaved,
    partial_rotary: true,
    dialects: &[&dialect::GLM4],
    tensors: TensorNames {
        gate_up: GateUp::Fused("model.layers.{layer}.mlp.gate_up_proj"),
        ..PLAIN.tensors
    },
    ..PLAIN
};
