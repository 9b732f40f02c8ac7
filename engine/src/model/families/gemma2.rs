//! Gemma 2: norms on both sides of attention and MLP, soft caps, a window in every other layer.

use super::{Family, PLAIN, PostNorms, Preset, TensorNames, Windows, dialect, gemma};

pub(super) const FAMILY: Family = Family {
    architectures: &["Gemma2ForCausalLM"],
    fields: &[("hidden_act", "hidden_activation")],
    defaults: &[
        ("tie_word_embeddings", Preset::Flag(true)),
        ("hidden_act", Preset::Text("gelu_pytorch_tanh")),
        ("head_dim", Preset::Size(256)),
        ("query_pre_attn_scalar", Preset::Number(256.0)),
        ("sliding_window", Preset::Size(4096)),
        ("attn_logit_softcapping", Preset::Number(50.0)),
        ("final_logit_softcapping", Preset::Number(30.0)),
    ],
    windows: Windows::AllButEach(2),
    dialects: &[&dialect::GEMMA],
    tensors: TensorNames {
        mlp_norm: "model.layers.{layer}.pre_feedforward_layernorm",
        post_norms: Some(PostNorms {
            attn: "model.layers.{layer}.post_attention_layernorm",
            mlp: "model.layers.{layer}.post_feedforward_layernorm",
        }),
        ..PLAIN.tensors
    },
    ..gemma::FAMILY
};
