//! Gemma 3: Gemma 2 with normed heads instead of soft caps, a window in all layers but each sixth,
//! and a rope of their own in those. Published files of the larger ones leave most fields out.

use super::{Family, Preset, Windows, dialect, gemma2};

pub(super) const FAMILY: Family = Family {
    architectures: &["Gemma3ForCausalLM"],
    defaults: &[
        ("tie_word_embeddings", Preset::Flag(true)),
        ("hidden_act", Preset::Text("gelu_pytorch_tanh")),
        ("vocab_size", Preset::Size(262_208)),
        ("num_attention_heads", Preset::Size(8)),
        ("num_key_value_heads", Preset::Size(4)),
        ("head_dim", Preset::Size(256)),
        ("max_position_embeddings", Preset::Size(131_072)),
        ("rms_norm_eps", Preset::Number(1e-6)),
        ("rope_theta", Preset::Number(1e6)),
        ("rope_local_base_freq", Preset::Number(1e4)),
        ("query_pre_attn_scalar", Preset::Number(256.0)),
        ("sliding_window", Preset::Size(4096)),
    ],
    qk_norm: true,
    windows: Windows::AllButEach(6),
    window_rope: true,
    stretched_positions: true,
    dialects: &[&dialect::GEMMA3],
    ..gemma2::FAMILY
};
