//! The first Qwen: query, key and value in one tensor with a bias, the gate behind the up
//! projection; a rope that stretches in steps and queries that grow with the logarithm of their
//! position, if the checkpoint asks for them.

use super::{AttentionBias, Family, GateUp, PLAIN, Qkv, TensorNames, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["QWenLMHeadModel"],
    fields: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("head_dim", "kv_channels"),
        ("rope_theta", "rotary_emb_base"),
        ("partial_rotary_factor", "rotary_pct"),
        ("trained_len", "seq_length"),
    ],
    only: &[("no_bias", true), ("scale_attn_weights", true)],
    bias: AttentionBias::QkvOnly,
    partial_rotary: true,
    doubled_intermediate: true,
    dialects: &[&dialect::QWEN],
    tensors: TensorNames {
        embed: "transformer.wte",
        final_norm: "transformer.ln_f",
        attn_norm: "transformer.h.{layer}.ln_1",
        qkv: Qkv::Fused("transformer.h.{layer}.attn.c_attn"),
        output: "transformer.h.{layer}.attn.c_proj",
        mlp_norm: "transformer.h.{layer}.ln_2",
        gate_up: GateUp::Apart {
            gate: "transformer.h.{layer}.mlp.w2",
            up: "transformer.h.{layer}.mlp.w1",
        },
        down: "transformer.h.{layer}.mlp.c_proj",
        ..PLAIN.tensors
    },
    ..PLAIN
};
