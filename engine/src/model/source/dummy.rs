//! Random weights for any configuration: the speed of a model without its files.
//!
//! A weight depends on the seed, the tensor's name and the element's index only, and is made by
//! integer arithmetic and one exact scaling, so that every machine and every device sees the same
//! bits. Norm weights are 1 and biases small, so that activations stay finite at any depth.

use std::borrow::Cow;

use half::{bf16, f16};
use pagoda_kernels::dtype::DType;
use rayon::prelude::*;

use super::{SourceError, Tensor, TensorSource, rows_cols};

/// A source that invents what it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Dummy {
    /// Changes every weight.
    pub seed: u64,
    /// Type that the invented checkpoint is stored in.
    pub dtype: DType,
}

/// Largest magnitude of a weight: a power of two, so that scaling is exact. Uniform values of
/// this range have a standard deviation of 0.018, close to the usual 0.02 of fresh weights.
const RANGE: f32 = 1.0 / 32.0;
/// More than any tensor that fits a machine; the sizes come from a configuration file.
const MAX_BYTES: usize = 1 << 40;

impl TensorSource for Dummy {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        let refuse = |reason: String| SourceError::new("dummy weights", Some(name), reason);
        let (rows, cols) =
            rows_cols(shape).ok_or_else(|| refuse(format!("cannot have shape {shape:?}")))?;
        let size = self.dtype.bytes();
        let len = rows.checked_mul(cols).and_then(|n| n.checked_mul(size));
        let len = len.filter(|len| *len <= MAX_BYTES);
        let len = len.ok_or_else(|| refuse(format!("shape {shape:?} is too large")))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| refuse(format!("no memory for {len} bytes")))?;
        bytes.resize(len, 0);
        let is_norm = shape.len() == 1 && name.ends_with(".weight");
        let key = mix(self.seed ^ hash(name));
        bytes.par_chunks_mut(CHUNK * size).enumerate().for_each(|(chunk, bytes)| {
            for (offset, element) in bytes.chunks_exact_mut(size).enumerate() {
                let index = (chunk * CHUNK + offset) as u64;
                let value = if is_norm { 1.0 } else { uniform(key, index) * RANGE };
                match self.dtype {
                    DType::F32 => element.copy_from_slice(&value.to_le_bytes()),
                    DType::Bf16 => element.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    DType::F16 => element.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                }
            }
        });
        Ok(Tensor { dtype: self.dtype, rows, cols, bytes: Cow::Owned(bytes) })
    }

    fn stored_dtype(&self, _name: &str) -> Option<DType> {
        Some(self.dtype)
    }

    fn release(&self, _name: &str) -> Result<(), SourceError> {
        Ok(())
    }

    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// Elements that one thread fills at a time.
const CHUNK: usize = 1 << 14;

/// In `[-1, 1)`, a multiple of 2⁻²³.
fn uniform(key: u64, index: u64) -> f32 {
    let bits = mix(key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 40;
    (bits as i32 - (1 << 23)) as f32 / (1 << 23) as f32
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(dummy: Dummy, name: &str, shape: &[usize]) -> Vec<f32> {
        let tensor = dummy.tensor(name, shape).unwrap();
        let host = tensor.as_host().unwrap();
        (0..host.rows).flat_map(|r| (0..host.cols).map(move |c| host.at(r, c))).collect()
    }

    #[test]
    fn values_depend_on_seed_name_and_index_alone() {
        let f32s = Dummy { seed: 7, dtype: DType::F32 };
        let all = values(f32s, "w", &[300, 70]);
        assert_eq!(all, values(f32s, "w", &[21000]));
        assert_ne!(all, values(Dummy { seed: 8, ..f32s }, "w", &[300, 70]));
        assert_ne!(all, values(f32s, "v", &[300, 70]));
        let rounded = values(Dummy { dtype: DType::Bf16, ..f32s }, "w", &[300, 70]);
        assert!(all.iter().zip(&rounded).all(|(a, b)| bf16::from_f32(*a).to_f32() == *b));
        assert_eq!(all[..2], [-0.004_802_864, -0.000_735_275_45]);
    }

    #[test]
    fn values_look_uniform_and_norms_are_one() {
        let all = values(Dummy { seed: 1, dtype: DType::F32 }, "w", &[100_000]);
        let mean: f32 = all.iter().sum::<f32>() / 1e5;
        let square: f32 = all.iter().map(|v| v * v).sum::<f32>() / 1e5;
        assert!(mean.abs() < 2e-4, "{mean}");
        assert!((square.sqrt() - RANGE / 3f32.sqrt()).abs() < 1e-4, "{square}");
        assert!(all.iter().all(|v| v.abs() <= RANGE));
        let norm = values(Dummy { seed: 1, dtype: DType::F16 }, "model.norm.weight", &[4]);
        assert_eq!(norm, [1.0; 4]);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let dummy = Dummy { seed: 0, dtype: DType::F32 };
        assert!(dummy.tensor("w", &[usize::MAX, 2]).is_err());
        assert!(dummy.tensor("w", &[1 << 30, 1 << 30]).is_err());
        assert!(dummy.tensor("w", &[1, 2, 3]).is_err());
    }
}
