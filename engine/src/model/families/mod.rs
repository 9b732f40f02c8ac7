//! The model families: each a table of differences from a plain decoder, and its tensors' names.
//!
//! The registry below has one line a family and is the only place that lists architectures.
//! [`crate::model::config`] and [`crate::model::spec`] read the tables; the decoder never does.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use pagoda_kernels::ops::RopeStyle;

/// Every family there is.
const FAMILIES: &[&Family] =
    &[&llama::FAMILY, &mistral::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &qwen3_moe::FAMILY];

/// In what a family may differ.
#[derive(Debug)]
pub struct Family {
    /// As in `architectures` of config.json.
    pub architecture: &'static str,
    /// Which projections of attention have a bias.
    pub bias: AttentionBias,
    /// Whether each query and key head is normed before rope.
    pub qk_norm: bool,
    /// Which layers see a window only.
    pub windows: Windows,
    /// Whether layers may hold experts (`num_experts` and its companions).
    pub sparse: bool,
    /// Which elements of a head form a rotated pair.
    pub rope_style: RopeStyle,
    /// What its tensors are called.
    pub tensors: TensorNames,
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// Query, key, value and output, if `attention_bias` says so.
    ByConfig,
    /// Query, key and value always, output never.
    QkvOnly,
}

/// Which layers see a window only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    Never,
    /// All, if `sliding_window` is a number.
    Always,
    /// If `use_sliding_window`: layers from `max_window_layers` on, or as `layer_types` says.
    UpperLayers,
    /// If `use_sliding_window`: all layers.
    Switched,
}

/// What a family's tensors are called. `{layer}` and `{expert}` stand for numbers; every name goes on
/// with `.weight`, and with `.bias` where the projection has one.
#[derive(Clone, Copy, Debug)]
pub struct TensorNames {
    /// `[V, H]`.
    pub embed: &'static str,
    /// `[H]`.
    pub final_norm: &'static str,
    /// `[V, H]`, absent when tied.
    pub head: &'static str,
    /// `[H]` before attention.
    pub attn_norm: &'static str,
    /// `[Nq·D, H]`.
    pub query: &'static str,
    /// `[Nkv·D, H]`.
    pub key: &'static str,
    /// `[Nkv·D, H]`.
    pub value: &'static str,
    /// `[D]`.
    pub query_norm: &'static str,
    /// `[D]`.
    pub key_norm: &'static str,
    /// `[H, Nq·D]`.
    pub output: &'static str,
    /// `[H]` before the MLP.
    pub mlp_norm: &'static str,
    /// `[I, H]`.
    pub gate: &'static str,
    /// `[I, H]`.
    pub up: &'static str,
    /// `[H, I]`.
    pub down: &'static str,
    /// `[E, H]`.
    pub router: &'static str,
    /// `[I, H]` of one expert.
    pub expert_gate: &'static str,
    /// `[I, H]` of one expert.
    pub expert_up: &'static str,
    /// `[H, I]` of one expert.
    pub expert_down: &'static str,
}

/// The plain decoder that tables differ from: biases only if the configuration asks for them,
/// norms on the residual stream only, full attention, dense MLP, names as Llama published them.
const PLAIN: Family = Family {
    architecture: "",
    bias: AttentionBias::ByConfig,
    qk_norm: false,
    windows: Windows::Never,
    sparse: false,
    rope_style: RopeStyle::Halves,
    tensors: TensorNames {
        embed: "model.embed_tokens",
        final_norm: "model.norm",
        head: "lm_head",
        attn_norm: "model.layers.{layer}.input_layernorm",
        query: "model.layers.{layer}.self_attn.q_proj",
        key: "model.layers.{layer}.self_attn.k_proj",
        value: "model.layers.{layer}.self_attn.v_proj",
        query_norm: "model.layers.{layer}.self_attn.q_norm",
        key_norm: "model.layers.{layer}.self_attn.k_norm",
        output: "model.layers.{layer}.self_attn.o_proj",
        mlp_norm: "model.layers.{layer}.post_attention_layernorm",
        gate: "model.layers.{layer}.mlp.gate_proj",
        up: "model.layers.{layer}.mlp.up_proj",
        down: "model.layers.{layer}.mlp.down_proj",
        router: "model.layers.{layer}.mlp.gate",
        expert_gate: "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        expert_up: "model.layers.{layer}.mlp.experts.{expert}.up_proj",
        expert_down: "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    },
};

/// The family of an architecture's name.
pub fn find(architecture: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.architecture == architecture)
}

/// All architectures, for the message of a refusal.
pub fn supported() -> String {
    FAMILIES.iter().map(|family| family.architecture).collect::<Vec<_>>().join(", ")
}
