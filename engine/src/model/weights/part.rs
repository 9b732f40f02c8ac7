//! Which rows of which tensors a packed weight is made of.
//!
//! Some checkpoints store several projections as one tensor: a part is a range of its rows, so that
//! packing need not know. Names come from the family's table, shapes from the spec.

use std::ops::Range;

use pagoda_kernels::dtype::HostTensor;
use pagoda_kernels::ops::Heads;

use crate::model::error::LoadError;
use crate::model::families::{GateUp, Qkv, TensorNames};
use crate::model::source::{SourceError, Tensor, TensorSource};

/// Rows of one tensor.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The tensor.
    pub(super) name: String,
    /// All rows that it has.
    tensor_rows: usize,
    /// Those of this part.
    pub(super) rows: Range<usize>,
    /// Its columns.
    pub(super) cols: usize,
}

impl Part {
    /// A matrix.
    pub(super) fn whole(name: String, rows: usize, cols: usize) -> Self {
        Part { name, tensor_rows: rows, rows: 0..rows, cols }
    }

    /// A tensor of one dimension.
    pub(super) fn vector(name: String, len: usize) -> Self {
        Part::whole(name, 1, len)
    }

    /// A source that broke its promise about a shape.
    pub(super) fn mismatch(&self) -> LoadError {
        let reason = "gave bytes of another shape";
        SourceError::new("the source of weights", Some(&self.name), reason).into()
    }

    /// Its rows of `tensor`.
    fn rows_of<'t>(&self, tensor: &'t Tensor<'_>) -> Option<HostTensor<'t>> {
        let row_bytes = self.cols * tensor.dtype.bytes();
        let bytes = tensor.bytes.get(self.rows.start * row_bytes..self.rows.end * row_bytes)?;
        HostTensor::new(tensor.dtype, self.rows.len(), self.cols, bytes)
    }
}

/// A weight's name.
pub(super) fn weight(name: &str) -> String {
    format!("{name}.weight")
}

/// A bias's name.
pub(super) fn bias(name: &str) -> String {
    format!("{name}.bias")
}

/// Query, key and value of a layer, in this order.
pub(super) fn qkv(names: &TensorNames, layer: usize, heads: Heads, hidden: usize) -> Vec<Part> {
    let part = |(name, rows): (String, usize)| Part::whole(weight(&name), rows, hidden);
    projections(names, layer, heads).into_iter().map(part).collect()
}

/// Their biases.
pub(super) fn qkv_bias(names: &TensorNames, layer: usize, heads: Heads) -> Vec<Part> {
    let part = |(name, len): (String, usize)| Part::vector(bias(&name), len);
    projections(names, layer, heads).into_iter().map(part).collect()
}

/// Names and rows of the projections into attention.
fn projections(names: &TensorNames, layer: usize, heads: Heads) -> Vec<(String, usize)> {
    let (q_rows, kv_rows) = (heads.num_q * heads.head_dim, heads.num_kv * heads.head_dim);
    let named = |pattern: &str| names.of_layer(pattern, layer);
    match names.qkv {
        Qkv::Apart { query, key, value } => {
            vec![(named(query), q_rows), (named(key), kv_rows), (named(value), kv_rows)]
        }
        Qkv::Fused(pattern) => vec![(named(pattern), q_rows + 2 * kv_rows)],
    }
}

/// Gate and up of a layer, in this order.
pub(super) fn gate_up(
    names: &TensorNames,
    layer: usize,
    intermediate: usize,
    hidden: usize,
) -> [Part; 2] {
    let named = |pattern: &str| weight(&names.of_layer(pattern, layer));
    match names.gate_up {
        GateUp::Apart { gate, up } => {
            [gate, up].map(|pattern| Part::whole(named(pattern), intermediate, hidden))
        }
        GateUp::Fused(pattern) => [0, intermediate].map(|first| Part {
            name: named(pattern),
            tensor_rows: 2 * intermediate,
            rows: first..first + intermediate,
            cols: hidden,
        }),
    }
}

/// The tensors of all parts, each once: one may hold several parts, and be widened as it is read.
pub(super) fn read<'s>(
    source: &'s dyn TensorSource,
    parts: &[Part],
) -> Result<Vec<Tensor<'s>>, SourceError> {
    let tensor =
        |parts: &[Part]| source.tensor(&parts[0].name, &[parts[0].tensor_rows, parts[0].cols]);
    of_tensors(parts).map(tensor).collect()
}

/// The rows of all parts, as a device takes them.
pub(super) fn as_hosts<'t>(
    parts: &[Part],
    tensors: &'t [Tensor<'_>],
) -> Result<Vec<HostTensor<'t>>, LoadError> {
    let pairs = of_tensors(parts).zip(tensors);
    let pairs = pairs.flat_map(|(parts, tensor)| parts.iter().map(move |part| (part, tensor)));
    pairs.map(|(part, tensor)| part.rows_of(tensor).ok_or_else(|| part.mismatch())).collect()
}

/// Parts side by side that are rows of one tensor.
fn of_tensors(parts: &[Part]) -> impl Iterator<Item = &[Part]> {
    parts.chunk_by(|one, other| one.name == other.name)
}
