//! Activation buffers of a decoder: which there are, and how large for the largest step.
//!
//! One buffer for each use and width, shared by all layers, since layers run one after another.
//! The memory plan sums the same list that the decoder allocates.

use std::collections::BTreeMap;

use pagoda_kernels::device::{Device, Limits, Tensor};
use pagoda_kernels::error::KernelError;

use super::spec::{Mixer, MlpSpec, ModelSpec};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// The residual stream.
    Stream,
    /// Rows after a norm.
    Normed,
    /// Queries, keys and values.
    Qkv,
    /// What attention gives.
    Attended,
    /// Inside an MLP.
    Inner,
    /// Router scores.
    Scores,
    /// Inside experts.
    ExpertInner,
    /// What experts give.
    ExpertOuter,
    /// Rows that need logits.
    Gathered,
    /// Logits.
    Logits,
}

/// Rows of each buffer by use and columns.
type Shapes = BTreeMap<(Use, usize), usize>;

/// Every buffer that recording `spec` asks for.
fn shapes(spec: &ModelSpec, limits: &Limits) -> Shapes {
    let (tokens, logits_rows) = (limits.max_tokens, limits.max_logits_rows);
    let mut shapes = Shapes::from([
        ((Use::Stream, spec.hidden), tokens),
        ((Use::Normed, spec.hidden), tokens),
        ((Use::Gathered, spec.hidden), logits_rows),
        ((Use::Logits, spec.vocab), logits_rows),
    ]);
    for layer in &spec.layers {
        let Mixer::Attention(attention) = &layer.mixer;
        let heads = attention.heads;
        shapes.insert((Use::Qkv, (heads.num_q + 2 * heads.num_kv) * heads.head_dim), tokens);
        shapes.insert((Use::Attended, heads.num_q * heads.head_dim), tokens);
        match &layer.mlp {
            MlpSpec::Dense { intermediate, .. } => {
                shapes.insert((Use::Inner, *intermediate), tokens);
            }
            MlpSpec::Moe(moe) => {
                let rows = tokens * moe.num_chosen;
                shapes.insert((Use::Scores, moe.num_experts), tokens);
                for key in [(Use::ExpertInner, moe.intermediate), (Use::ExpertOuter, spec.hidden)] {
                    let held: &mut usize = shapes.entry(key).or_default();
                    *held = rows.max(*held);
                }
            }
        }
    }
    shapes
}

/// Bytes of all buffers together.
pub(super) fn activation_bytes(spec: &ModelSpec, limits: &Limits) -> u64 {
    let bytes = |((_, cols), rows): (&(Use, usize), &usize)| {
        (*cols as u64).saturating_mul(*rows as u64).saturating_mul(4)
    };
    shapes(spec, limits).iter().map(bytes).fold(0, u64::saturating_add)
}

/// The buffers on a device.
pub(super) struct Buffers<D: Device>(BTreeMap<(Use, usize), Tensor<D>>);

impl<D: Device> Buffers<D> {
    pub(super) fn new(device: &D, spec: &ModelSpec, limits: &Limits) -> Result<Self, KernelError> {
        let allocate = |((key, cols), rows)| Ok(((key, cols), device.tensor(rows, cols)?));
        shapes(spec, limits).into_iter().map(allocate).collect::<Result<_, _>>().map(Buffers)
    }

    /// The buffer for `key` with `cols` columns; every pair that recording asks for is there.
    pub(super) fn get(&self, key: Use, cols: usize) -> Result<Tensor<D>, KernelError> {
        self.0.get(&(key, cols)).cloned().ok_or_else(|| KernelError::Shape {
            op: "decoder",
            reason: format!("no buffer for {key:?} of {cols} columns"),
        })
    }
}
