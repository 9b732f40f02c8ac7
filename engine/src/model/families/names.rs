//! What a family's tensors are called.
//!
//! `{layer}` and `{expert}` stand for numbers; every name goes on with `.weight`, and with `.bias`
//! where the projection has one. Letters as in the op list.

/// The names of one family.
#[derive(Clone, Copy, Debug)]
pub struct TensorNames {
    /// Stands before every name.
    pub root: &'static str,
    /// `[V, H]`.
    pub embed: &'static str,
    /// `[H]`.
    pub final_norm: &'static str,
    /// `[V, H]`, absent when tied.
    pub head: &'static str,
    /// `[H]` before attention.
    pub attn_norm: &'static str,
    /// Projections into attention.
    pub qkv: Qkv,
    /// `[D]`.
    pub query_norm: &'static str,
    /// `[D]`.
    pub key_norm: &'static str,
    /// `[H, Nq·D]`.
    pub output: &'static str,
    /// `[H]` before the MLP.
    pub mlp_norm: &'static str,
    /// Norms of what attention and MLP give, if there are any.
    pub post_norms: Option<PostNorms>,
    /// Projections into the MLP.
    pub gate_up: GateUp,
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

/// How query, key and value are stored.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    /// Three tensors.
    Apart {
        /// `[Nq·D, H]`.
        query: &'static str,
        /// `[Nkv·D, H]`.
        key: &'static str,
        /// `[Nkv·D, H]`.
        value: &'static str,
    },
    /// One tensor `[(Nq + 2·Nkv)·D, H]`, in this order.
    Fused(&'static str),
}

/// How gate and up are stored.
#[derive(Clone, Copy, Debug)]
pub enum GateUp {
    /// Two tensors.
    Apart {
        /// `[I, H]`.
        gate: &'static str,
        /// `[I, H]`.
        up: &'static str,
    },
    /// One tensor `[2·I, H]`, the gate's rows first.
    Fused(&'static str),
}

/// Norms of what is added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct PostNorms {
    /// `[H]` behind attention.
    pub attn: &'static str,
    /// `[H]` behind the MLP.
    pub mlp: &'static str,
}

impl TensorNames {
    /// A name that is there once.
    pub fn once(&self, pattern: &str) -> String {
        format!("{}{pattern}", self.root)
    }

    /// A name of a layer.
    pub fn of_layer(&self, pattern: &str, layer: usize) -> String {
        self.once(&pattern.replace("{layer}", &layer.to_string()))
    }

    /// A name of an expert of a layer.
    pub fn of_expert(&self, pattern: &str, layer: usize, expert: usize) -> String {
        self.of_layer(pattern, layer).replace("{expert}", &expert.to_string())
    }
}
