//! What a family's table holds: everything in which decoders here may differ.
//!
//! Plain constants, read once when a model is loaded. What is a matter of each checkpoint stands in
//! its config.json and is read for every family alike; here stands what that file takes for granted.

use pagoda_kernels::ops::RopeStyle;
use serde_json::{Map, Value};

use super::dialect::Dialect;
use super::names::{GateUp, Qkv, TensorNames};

/// In what a family may differ.
#[derive(Debug)]
pub struct Family {
    /// As in `architectures` of config.json; all of them mean this family.
    pub architectures: &'static [&'static str],
    /// The object of config.json that describes the decoder, where the file describes more.
    pub nested: Option<&'static str>,
    /// Fields that the file calls otherwise: our name, then the file's.
    pub fields: &'static [(&'static str, &'static str)],
    /// What fields mean that published files leave out, by our names.
    pub defaults: &'static [(&'static str, Preset)],
    /// Flags of arithmetic that is not here, each with the only value that is.
    pub only: &'static [(&'static str, bool)],
    /// Which projections of attention have a bias.
    pub bias: AttentionBias,
    /// Whether each query and key head is normed before rope.
    pub qk_norm: bool,
    /// Added to each weight of a norm.
    pub norm_offset: f32,
    /// Whether embeddings are multiplied by √H.
    pub scaled_embedding: bool,
    /// Which layers see a window only.
    pub windows: Windows,
    /// Whether layers with a window have a rope of their own.
    pub window_rope: bool,
    /// Which elements of a head form a rotated pair.
    pub rope_style: RopeStyle,
    /// Whether a share of a head may turn (`partial_rotary_factor`), not all of it.
    pub partial_rotary: bool,
    /// Whether `max_position_embeddings` counts what a stretched rope adds.
    pub stretched_positions: bool,
    /// Whether layers may hold experts (`num_experts` and its companions).
    pub sparse: bool,
    /// Whether `gelu` means its tanh approximation.
    pub gelu_is_tanh: bool,
    /// Whether the file's intermediate size is 2·I.
    pub doubled_intermediate: bool,
    /// How it writes a conversation, for checkpoints that do not say it; the first that the
    /// tokenizer knows the tokens of.
    pub dialects: &'static [&'static Dialect],
    /// What its tensors are called.
    pub tensors: TensorNames,
}

/// A field's value where the file has none.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// A whole number.
    Size(u32),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A string.
    Text(&'static str),
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// Query, key, value and output, if `attention_bias` says so.
    ByConfig,
    /// Query, key and value, if `attention_bias` says so; output never.
    QkvByConfig,
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
    /// All but each such one (`sliding_window_pattern`), or as `layer_types` says.
    AllButEach(u32),
}

/// The plain decoder that tables differ from: biases only if the configuration asks for them,
/// norms on the residual stream only, full attention, dense MLP, names as Llama published them.
pub(super) const PLAIN: Family = Family {
    architectures: &[],
    nested: None,
    fields: &[],
    defaults: &[],
    only: &[],
    bias: AttentionBias::ByConfig,
    qk_norm: false,
    norm_offset: 0.0,
    scaled_embedding: false,
    windows: Windows::Never,
    window_rope: false,
    rope_style: RopeStyle::Halves,
    partial_rotary: false,
    stretched_positions: false,
    sparse: false,
    gelu_is_tanh: false,
    doubled_intermediate: false,
    dialects: &[],
    tensors: TensorNames {
        root: "",
        embed: "model.embed_tokens",
        final_norm: "model.norm",
        head: "lm_head",
        attn_norm: "model.layers.{layer}.input_layernorm",
        qkv: Qkv::Apart {
            query: "model.layers.{layer}.self_attn.q_proj",
            key: "model.layers.{layer}.self_attn.k_proj",
            value: "model.layers.{layer}.self_attn.v_proj",
        },
        query_norm: "model.layers.{layer}.self_attn.q_norm",
        key_norm: "model.layers.{layer}.self_attn.k_norm",
        output: "model.layers.{layer}.self_attn.o_proj",
        mlp_norm: "model.layers.{layer}.post_attention_layernorm",
        post_norms: None,
        gate_up: GateUp::Apart {
            gate: "model.layers.{layer}.mlp.gate_proj",
            up: "model.layers.{layer}.mlp.up_proj",
        },
        down: "model.layers.{layer}.mlp.down_proj",
        router: "model.layers.{layer}.mlp.gate",
        expert_gate: "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        expert_up: "model.layers.{layer}.mlp.experts.{expert}.up_proj",
        expert_down: "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    },
};

impl Family {
    /// [`Family::defaults`] as a file would have written them.
    pub fn default_values(&self) -> Map<String, Value> {
        let value = |preset: &Preset| match *preset {
            Preset::Size(size) => size.into(),
            Preset::Number(number) => number.into(),
            Preset::Flag(flag) => flag.into(),
            Preset::Text(text) => text.into(),
        };
        self.defaults.iter().map(|(field, preset)| ((*field).to_owned(), value(preset))).collect()
    }
}
