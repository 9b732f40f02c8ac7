//! A model as a list of layers, and the KV groups they form.
//!
//! Made once from a checkpoint's configuration and the maximum model length; the decoder records
//! exactly this and never asks which family it runs. Plain data: whoever changes a field gets a
//! different model, which is how tests plant faults.

use pagoda_kernels::ops::{Activation, Heads, Routing};

use super::config::ModelConfig;
use super::families::TensorNames;
use super::info::KvGroupKind;
use super::rope::RopeSpec;

/// All that a decoder needs to know of a model.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// H.
    pub hidden: usize,
    /// V.
    pub vocab: usize,
    /// Multiplies embeddings, once rounded to the type they are loaded in.
    pub embed_scale: f32,
    /// Added to each weight of a norm, at load.
    pub norm_offset: f32,
    /// From the embedding to the final norm.
    pub layers: Vec<LayerSpec>,
    /// Ropes that layers name by index.
    pub ropes: Vec<RopeSpec>,
    /// KV groups that layers name by index.
    pub groups: Vec<KvGroup>,
    /// eps of the final norm.
    pub final_eps: f32,
    /// From the final norm to logits.
    pub head: HeadSpec,
    /// What the tensors are called.
    pub tensors: TensorNames,
}

/// One layer: `x += mixer(norm(x)); x += mlp(norm(x))`, each sum possibly normed before it is added.
#[derive(Clone, Debug)]
pub struct LayerSpec {
    /// How rows look at each other.
    pub mixer: Mixer,
    /// What each row does alone.
    pub mlp: MlpSpec,
    /// eps of the norms before mixer and MLP.
    pub eps: f32,
    /// eps of the norms of what they give, if it is normed.
    pub post_norm: Option<f32>,
}

/// How rows of a sequence look at each other.
#[derive(Clone, Debug)]
pub enum Mixer {
    /// Softmax attention over a paged cache.
    Attention(AttentionSpec),
}

/// Attention of one layer.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Nq, Nkv and D.
    pub heads: Heads,
    /// Multiplies q·k.
    pub scale: f32,
    /// A row at position p sees keys in `(p − window, p]`.
    pub window: Option<u32>,
    /// `s = cap · tanh(s / cap)` of the scaled logits.
    pub soft_cap: Option<f32>,
    /// Index into [`ModelSpec::ropes`]; `None` turns nothing.
    pub rope: Option<usize>,
    /// eps of the norm of query and key heads, if they are normed.
    pub qk_norm: Option<f32>,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Index into [`ModelSpec::groups`].
    pub group: usize,
    /// Index of the layer within its group's cache.
    pub layer_in_group: usize,
}

/// What a row does alone.
#[derive(Clone, Debug)]
pub enum MlpSpec {
    /// One gated MLP.
    Dense {
        /// I.
        intermediate: usize,
        /// Of the gate.
        activation: Activation,
    },
    /// A router and experts.
    Moe(MoeSpec),
}

/// A router and experts.
#[derive(Clone, Debug)]
pub struct MoeSpec {
    /// E.
    pub num_experts: usize,
    /// A.
    pub num_chosen: usize,
    /// I of one expert.
    pub intermediate: usize,
    /// Of the gates.
    pub activation: Activation,
    /// How scores become weights.
    pub routing: Routing,
    /// Divide the chosen weights by their sum.
    pub renormalize: bool,
}

/// From the final norm to logits.
#[derive(Clone, Debug)]
pub struct HeadSpec {
    /// Whether the embedding is the head's weight.
    pub tied: bool,
    /// Multiplies logits.
    pub scale: f32,
    /// `cap · tanh(logit / cap)` after scaling.
    pub soft_cap: Option<f32>,
}

/// Layers that need the same blocks for the same tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// Which tokens a sequence keeps.
    pub kind: KvGroupKind,
    /// Nkv.
    pub num_kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Layers in the group.
    pub num_layers: usize,
}

impl ModelSpec {
    /// The layers of `config` for sequences of up to `max_model_len` tokens. A window that no
    /// sequence outgrows is none.
    pub fn plan(config: &ModelConfig, max_model_len: u32) -> Self {
        let mut groups = Vec::new();
        let layers = (0..config.num_layers)
            .map(|index| {
                let window = config.windows[index].filter(|window| *window < max_model_len);
                let (group, layer_in_group) = join_group(&mut groups, window, config.heads);
                // A window that no sequence outgrows still turns as the checkpoint has it.
                let has_window_rope =
                    config.window_rope.is_some() && config.windows[index].is_some();
                let attention = AttentionSpec {
                    heads: config.heads,
                    scale: config.attention_scale,
                    window,
                    soft_cap: config.attention_soft_cap,
                    rope: Some(usize::from(has_window_rope)),
                    qk_norm: config.family.qk_norm.then_some(config.norm_eps),
                    qkv_bias: config.qkv_bias,
                    output_bias: config.output_bias,
                    group,
                    layer_in_group,
                };
                LayerSpec {
                    mixer: Mixer::Attention(attention),
                    mlp: plan_mlp(config, index),
                    eps: config.norm_eps,
                    post_norm: config.family.tensors.post_norms.map(|_| config.norm_eps),
                }
            })
            .collect();
        let embed_scale =
            if config.family.scaled_embedding { (config.hidden as f32).sqrt() } else { 1.0 };
        let soft_cap = config.logit_soft_cap;
        ModelSpec {
            hidden: config.hidden,
            vocab: config.vocab,
            embed_scale,
            norm_offset: config.family.norm_offset,
            layers,
            ropes: std::iter::once(&config.rope).chain(&config.window_rope).cloned().collect(),
            groups,
            final_eps: config.norm_eps,
            head: HeadSpec { tied: config.tied, scale: 1.0, soft_cap },
            tensors: config.family.tensors,
        }
    }

    /// Name of the embedding, whose type is taken for the checkpoint's.
    pub(crate) fn embedding_name(&self) -> String {
        format!("{}.weight", self.tensors.once(self.tensors.embed))
    }
}

/// Adds a layer to the group of its kind, or founds one. Returns group and index within.
fn join_group(groups: &mut Vec<KvGroup>, window: Option<u32>, heads: Heads) -> (usize, usize) {
    let kind = window.map_or(KvGroupKind::Full, KvGroupKind::Window);
    let same = |group: &KvGroup| {
        (group.kind, group.num_kv_heads, group.head_dim) == (kind, heads.num_kv, heads.head_dim)
    };
    let index = groups.iter().position(same).unwrap_or_else(|| {
        groups.push(KvGroup {
            kind,
            num_kv_heads: heads.num_kv,
            head_dim: heads.head_dim,
            num_layers: 0,
        });
        groups.len() - 1
    });
    groups[index].num_layers += 1;
    (index, groups[index].num_layers - 1)
}

fn plan_mlp(config: &ModelConfig, layer: usize) -> MlpSpec {
    match &config.experts {
        Some(experts) if experts.layers[layer] => MlpSpec::Moe(MoeSpec {
            num_experts: experts.num_experts,
            num_chosen: experts.num_chosen,
            intermediate: experts.intermediate,
            activation: config.activation,
            routing: Routing::Softmax,
            renormalize: experts.renormalize,
        }),
        _ => MlpSpec::Dense { intermediate: config.intermediate, activation: config.activation },
    }
}
