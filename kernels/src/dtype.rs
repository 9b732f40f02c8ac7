//! Number types of tensors, activations and the KV cache, and plain host tensors.
//!
//! Used when a checkpoint is loaded and when memory is planned. Never converts silently: a
//! conversion that rounds is named at its call site.

use half::{bf16, f16};

/// A number type as stored in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE half precision. Widened in registers, never rounded to bf16.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        }
    }
}

/// A dense row-major matrix on the host, borrowed from a checkpoint: `[rows, cols]`.
///
/// Invariant: `bytes.len() == rows * cols * dtype.bytes()` (checked by [`HostTensor::new`]).
/// The bytes are little-endian and need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct HostTensor<'a> {
    /// Number type of the elements.
    pub dtype: DType,
    /// Rows: output features for a linear weight, tokens for an embedding.
    pub rows: usize,
    /// Columns: input features.
    pub cols: usize,
    /// Elements, row after row.
    pub bytes: &'a [u8],
}

impl<'a> HostTensor<'a> {
    /// Wraps `bytes`; `None` when their number does not match the shape (or the shape overflows).
    pub fn new(dtype: DType, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Self> {
        let expected = rows.checked_mul(cols)?.checked_mul(dtype.bytes())?;
        (bytes.len() == expected).then_some(HostTensor { dtype, rows, cols, bytes })
    }

    /// Element `(row, col)` widened to f32 (exact for every type).
    pub fn at(&self, row: usize, col: usize) -> f32 {
        let index = row * self.cols + col;
        match self.dtype {
            DType::F32 => f32::from_le_bytes(self.element(index)),
            DType::Bf16 => bf16::from_le_bytes(self.element(index)).to_f32(),
            DType::F16 => f16::from_le_bytes(self.element(index)).to_f32(),
        }
    }

    /// Widens a row of [`HostTensor::cols`] elements, exactly.
    pub(crate) fn read_row(&self, row: usize, to: &mut [f32]) {
        let size = self.dtype.bytes();
        let bytes = &self.bytes[row * self.cols * size..(row + 1) * self.cols * size];
        let pairs = bytes.chunks_exact(2).zip(to.iter_mut());
        match self.dtype {
            DType::F32 => {
                for (from, to) in bytes.chunks_exact(4).zip(to) {
                    *to = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                }
            }
            DType::Bf16 => {
                pairs.for_each(|(from, to)| *to = bf16::from_le_bytes([from[0], from[1]]).to_f32());
            }
            DType::F16 => {
                pairs.for_each(|(from, to)| *to = f16::from_le_bytes([from[0], from[1]]).to_f32());
            }
        }
    }

    fn element<const SIZE: usize>(&self, index: usize) -> [u8; SIZE] {
        let mut element = [0; SIZE];
        element.copy_from_slice(&self.bytes[index * SIZE..(index + 1) * SIZE]);
        element
    }
}
