//! Activation buffers and rope tables of a decoder: which there are, and how large for the largest
//! step.
//!
//! One buffer for each use and width, shared by all layers, since layers run one after another.
//! The memory plan sums the same list that the decoder allocates.

use std::collections::BTreeMap;

use pagoda_kernels::device::{Device, Limits, Tensor, Vector};
use pagoda_kernels::error::KernelError;

use super::rope::RopeSpec;
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
    /// What attention or MLP give, before it is normed.
    Projected,
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
        if layer.post_norm.is_some() {
            shapes.insert((Use::Projected, spec.hidden), tokens);
        }
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

/// Bytes of all buffers and tables together.
pub(super) fn activation_bytes(spec: &ModelSpec, limits: &Limits) -> u64 {
    let elements = |cols: usize, rows: usize| (cols as u64).saturating_mul(rows as u64);
    let shapes = shapes(spec, limits);
    let activations = shapes.iter().map(|((_, cols), rows)| elements(*cols, *rows));
    let ropes = spec.ropes.iter().map(|rope| rope.table_elements(limits.max_model_len as u32));
    activations.chain(ropes).fold(0, u64::saturating_add).saturating_mul(4)
}

/// The buffers and tables on a device.
pub(super) struct Buffers<D: Device> {
    activations: BTreeMap<(Use, usize), Tensor<D>>,
    /// One for each of the spec's ropes.
    pub(super) ropes: Vec<RopeTables<D>>,
}

/// The tables of a rope; one where they are equal.
pub(super) struct RopeTables<D: Device> {
    pub(super) keys: Vector<D>,
    pub(super) queries: Vector<D>,
}

impl<D: Device> Buffers<D> {
    /// Zeros, and the tables up to the maximum length.
    pub(super) fn new(device: &D, spec: &ModelSpec, limits: &Limits) -> Result<Self, KernelError> {
        Self::with_tables(device, spec, limits, |rope, len| {
            (rope.table(len), rope.query_table(len))
        })
    }

    /// Buffers as large, whose tables say nothing: for programs that are never run.
    pub(super) fn rooms(
        device: &D,
        spec: &ModelSpec,
        limits: &Limits,
    ) -> Result<Self, KernelError> {
        let table = |rope: &RopeSpec, len: u32| (vec![0.0; len as usize * rope.rotary_dim], None);
        Self::with_tables(device, spec, limits, table)
    }

    fn with_tables(
        device: &D,
        spec: &ModelSpec,
        limits: &Limits,
        tables_of: impl Fn(&RopeSpec, u32) -> (Vec<f32>, Option<Vec<f32>>),
    ) -> Result<Self, KernelError> {
        let allocate = |((key, cols), rows)| Ok(((key, cols), device.tensor(rows, cols)?));
        let activations = shapes(spec, limits).into_iter().map(allocate);
        let tables = |rope: &RopeSpec| {
            let (keys, queries) = tables_of(rope, limits.max_model_len as u32);
            let keys = device.vector(&keys)?;
            let queries = match queries {
                Some(table) => device.vector(&table)?,
                None => keys.clone(),
            };
            Ok(RopeTables { keys, queries })
        };
        let ropes = spec.ropes.iter().map(tables).collect::<Result<_, KernelError>>()?;
        Ok(Buffers { activations: activations.collect::<Result<_, KernelError>>()?, ropes })
    }

    /// The buffer for `key` with `cols` columns; every pair that recording asks for is there.
    pub(super) fn get(&self, key: Use, cols: usize) -> Result<Tensor<D>, KernelError> {
        self.activations.get(&(key, cols)).cloned().ok_or_else(|| KernelError::Shape {
            op: "decoder",
            reason: format!("no buffer for {key:?} of {cols} columns"),
        })
    }
}
