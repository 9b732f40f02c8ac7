//! Phi-3 and Phi-4: Llama with fused projections; a share of each head turns in Phi-4-mini.

use super::{Family, GateUp, PLAIN, Qkv, TensorNames, Windows, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["Phi3ForCausalLM"],
    windows: Windows::Always,
    partial_rotary: true,
    dialects: &[&dialect::PHI3],
    tensors: TensorNames {
        qkv: Qkv::Fused("model.layers.{layer}.self_attn.qkv_proj"),
        gate_up: GateUp::Fused("model.layers.{layer}.mlp.gate_up_proj"),
        ..PLAIN.tensors
    },
    ..PLAIN
};
