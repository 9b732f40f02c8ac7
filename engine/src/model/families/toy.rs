//! A family that no checkpoint has, with nearly every difference at once. It shows what one costs:
//! this file, and its line in the registry.

use pagoda_kernels::ops::RopeStyle;

use super::{AttentionBias, Family, GateUp, PLAIN, PostNorms, Preset, Qkv, TensorNames, Windows};

pub(super) const FAMILY: Family = Family {
    architectures: &["ToyForTests"],
    nested: Some("decoder"),
    fields: &[("hidden_size", "width"), ("num_hidden_layers", "depth")],
    defaults: &[
        ("tie_word_embeddings", Preset::Flag(true)),
        ("hidden_act", Preset::Text("gelu")),
        ("rope_local_base_freq", Preset::Number(100.0)),
        ("partial_rotary_factor", Preset::Number(0.5)),
        ("sliding_window", Preset::Size(7)),
    ],
    only: &[("upside_down", false)],
    bias: AttentionBias::QkvByConfig,
    qk_norm: true,
    norm_offset: 0.5,
    scaled_embedding: true,
    windows: Windows::AllButEach(3),
    window_rope: true,
    rope_style: RopeStyle::Interleaved,
    partial_rotary: true,
    gelu_is_tanh: true,
    doubled_intermediate: true,
    tensors: TensorNames {
        root: "toy.",
        qkv: Qkv::Fused("blocks.{layer}.qkv"),
        gate_up: GateUp::Fused("blocks.{layer}.gate_up"),
        post_norms: Some(PostNorms {
            attn: "blocks.{layer}.after_attention",
            mlp: "blocks.{layer}.after_mlp",
        }),
        ..PLAIN.tensors
    },
    ..PLAIN
};
