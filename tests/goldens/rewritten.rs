//! Checkpoints whose tensors come with their rows in another order: faults of a loader.

use std::borrow::Cow;

use pagoda_engine::model::source::{SourceError, Tensor, TensorSource};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::ops::Heads;

/// Query heads stand in another order: the same as reading KV head h mod Nkv, since the kernels go
/// by h / (Nq / Nkv).
pub(super) struct PermutedHeads {
    pub(super) inner: Box<dyn TensorSource>,
    pub(super) heads: Heads,
}

impl PermutedHeads {
    /// Where the element at `place` along the heads comes from; what are no queries stays.
    fn source_of(&self, place: usize) -> usize {
        let Heads { num_q, num_kv, head_dim } = self.heads;
        let (head, offset) = (place / head_dim, place % head_dim);
        if head >= num_q {
            return place;
        }
        let group = num_q / num_kv;
        ((head % group) * num_kv + head / group) * head_dim + offset
    }
}

/// Ends of the names of tensors with query heads along their rows, and along their columns. A bias
/// is one row.
const QUERY_ROWS: [&str; 3] = ["q_proj.weight", "qkv_proj.weight", "query_key_value.weight"];
const QUERY_COLS: [&str; 5] = [
    "o_proj.weight",
    "self_attention.dense.weight",
    "q_proj.bias",
    "qkv_proj.bias",
    "query_key_value.bias",
];

impl TensorSource for PermutedHeads {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        let tensor = self.inner.tensor(name, shape)?;
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        Ok(match (ends(&QUERY_ROWS), ends(&QUERY_COLS)) {
            (true, _) => reordered(tensor, |row, col| (self.source_of(row), col)),
            (_, true) => reordered(tensor, |row, col| (row, self.source_of(col))),
            _ => tensor,
        })
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.inner.stored_dtype(name)
    }

    fn release(&self, name: &str) -> Result<(), SourceError> {
        self.inner.release(name)
    }

    fn names(&self) -> Vec<&str> {
        self.inner.names()
    }
}

/// The two halves of fused gate and up projections have changed places.
pub(super) struct SwappedHalves {
    pub(super) inner: Box<dyn TensorSource>,
}

impl TensorSource for SwappedHalves {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        let tensor = self.inner.tensor(name, shape)?;
        let is_fused = ["gate_up_proj.weight", "dense_h_to_4h.weight"];
        if !is_fused.iter().any(|end| name.ends_with(end)) {
            return Ok(tensor);
        }
        let rows = tensor.rows;
        Ok(reordered(tensor, |row, col| ((row + rows / 2) % rows, col)))
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.inner.stored_dtype(name)
    }

    fn release(&self, name: &str) -> Result<(), SourceError> {
        self.inner.release(name)
    }

    fn names(&self) -> Vec<&str> {
        self.inner.names()
    }
}

/// A tensor whose element `(row, col)` is that of `source_of(row, col)`.
fn reordered(tensor: Tensor<'_>, source_of: impl Fn(usize, usize) -> (usize, usize)) -> Tensor<'_> {
    let size = tensor.dtype.bytes();
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for row in 0..tensor.rows {
        for col in 0..tensor.cols {
            let (row, col) = source_of(row, col);
            let at = (row * tensor.cols + col) * size;
            bytes.extend_from_slice(&tensor.bytes[at..at + size]);
        }
    }
    Tensor { bytes: Cow::Owned(bytes), ..tensor }
}
