//! Where tensors come from: files of a checkpoint, or nowhere (dummy weights).
//!
//! A [`TensorSource`] gives one tensor at a time, checked against the shape that the model needs.
//! It never copies a file into memory, and the pages of a tensor can be given back once packed.

/// Random weights for any configuration.
pub mod dummy;

/// Header of a safetensors file.
mod header;

/// Tensors in safetensors files.
pub mod safetensors;

/// Quantized ones among them, widened.
pub mod quantized;

use std::borrow::Cow;

use pagoda_kernels::dtype::{DType, HostTensor};

use super::error::readable;

/// A checkpoint's tensors.
pub trait TensorSource: Send + Sync {
    /// The tensor `name` of exactly this shape: `[rows, cols]` or `[len]`.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError>;

    /// The type that the tensor is stored in, if it is there.
    fn stored_dtype(&self, name: &str) -> Option<DType>;

    /// Gives back the memory behind a tensor that has been packed; an error if what was packed may
    /// be none of the checkpoint's, because a file could not be read any more.
    fn release(&self, name: &str) -> Result<(), SourceError>;

    /// Names of all tensors, ascending; empty if the source invents them.
    fn names(&self) -> Vec<&str>;
}

/// One tensor's elements, little-endian, row after row.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Type of an element.
    pub dtype: DType,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns, or the length of a vector.
    pub cols: usize,
    /// `rows · cols` elements.
    pub bytes: Cow<'a, [u8]>,
}

impl Tensor<'_> {
    /// The tensor as kernels take it. `None` if the bytes do not match the shape.
    pub fn as_host(&self) -> Option<HostTensor<'_>> {
        HostTensor::new(self.dtype, self.rows, self.cols, &self.bytes)
    }
}

/// A checkpoint whose tensors cannot be used, or a file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// The file.
    pub file: String,
    /// The tensor, if one is to blame.
    pub tensor: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl SourceError {
    pub(crate) fn new(file: &str, tensor: Option<&str>, reason: impl Into<String>) -> Self {
        SourceError {
            file: file.to_owned(),
            tensor: tensor.map(readable),
            reason: readable(reason),
        }
    }
}

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tensor {
            Some(tensor) => write!(f, "{}: tensor {tensor}: {}", self.file, self.reason),
            None => write!(f, "{}: {}", self.file, self.reason),
        }
    }
}

impl std::error::Error for SourceError {}

/// Rows and columns of a shape of one or two dimensions.
fn rows_cols(shape: &[usize]) -> Option<(usize, usize)> {
    match *shape {
        [cols] => Some((1, cols)),
        [rows, cols] => Some((rows, cols)),
        _ => None,
    }
}
