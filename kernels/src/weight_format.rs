//! How the elements of a weight are stored: as a plain number type, or quantized.
//!
//! Apart from [`DType`] on purpose: activations, the KV cache and checkpoints hold elements, a
//! quantized weight holds blocks. [`crate::quantize`] says what is in them.

use crate::dtype::DType;

/// Elements of a row that share a scale in the block formats.
pub const BLOCK: usize = 32;

/// How weights are quantized while a model loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// Blocks of 32 along K: an f16 scale and 32 × 8 bits.
    Q8_0,
    /// Blocks of 32 along K: an f16 scale and 32 × 4 bits.
    Q4_0,
    /// One e4m3 byte an element, one f32 scale a row.
    Fp8,
}

impl Quantization {
    /// All there are.
    pub const ALL: [Quantization; 3] = [Quantization::Q8_0, Quantization::Q4_0, Quantization::Fp8];

    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Quantization::Q8_0 => "q8_0",
            Quantization::Q4_0 => "q4_0",
            Quantization::Fp8 => "fp8",
        }
    }

    /// Bytes of a row of `cols` elements; the last block is padded.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let blocks = cols.div_ceil(BLOCK);
        match self {
            Quantization::Q8_0 => blocks * (2 + BLOCK),
            Quantization::Q4_0 => blocks * (2 + BLOCK / 2),
            Quantization::Fp8 => 4 + cols,
        }
    }

    /// Whether a linear with such weights quantizes its input rows to 8 bits in blocks of [`BLOCK`]
    /// ([`crate::ops`]).
    pub const fn quantizes_rows(self) -> bool {
        matches!(self, Quantization::Q8_0 | Quantization::Q4_0)
    }
}

/// How the elements of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Each element by itself.
    Plain(DType),
    /// With scales.
    Quantized(Quantization),
}

impl WeightFormat {
    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            WeightFormat::Plain(dtype) => dtype.name(),
            WeightFormat::Quantized(quantization) => quantization.name(),
        }
    }

    /// Bytes of a row of `cols` elements, without a device's padding.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            WeightFormat::Plain(dtype) => cols * dtype.bytes(),
            WeightFormat::Quantized(quantization) => quantization.row_bytes(cols),
        }
    }
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        WeightFormat::Plain(dtype)
    }
}

impl From<Quantization> for WeightFormat {
    fn from(quantization: Quantization) -> Self {
        WeightFormat::Quantized(quantization)
    }
}
