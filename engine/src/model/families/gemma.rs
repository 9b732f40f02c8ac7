//! Gemma: norm weights count from 1, embeddings grow by √H, the head is the embedding.

use super::{Family, PLAIN, Preset, dialect};

pub(super) const FAMILY: Family = Family {
    architectures: &["GemmaForCausalLM"],
    defaults: &[
        ("tie_word_embeddings", Preset::Flag(true)),
        ("hidden_act", Preset::Text("gelu_pytorch_tanh")),
        ("head_dim", Preset::Size(256)),
    ],
    only: &[("use_bidirectional_attention", false)],
    norm_offset: 1.0,
    scaled_embedding: true,
    gelu_is_tanh: true,
    dialects: &[&dialect::GEMMA],
    ..PLAIN
};
