//! Quantized tensors of safetensors files, widened to f32 as they are asked for.
//!
//! Stands between the files and whoever packs: `x.weight` is made from what the files have in its
//! place (`x.weight` in e4m3 with its scales, or `x.qweight`, `x.qzeros`, `x.scales`), and every
//! other tensor passes as it is. f32 holds what four bits and an f16 scale stand for exactly, and
//! the rest with one rounding, so that a weight is rounded once more only, to what it is packed as.
//! Never knows modules by name: a weight is quantized if its tensors are, whatever lists of modules
//! say. What its tensors say must be one thing: a scale of a plain weight is refused.

/// e4m3 elements with scales.
mod fp8;

/// Codes of four bits in words.
mod int4;

use std::borrow::Cow;

use pagoda_kernels::dtype::DType;

use super::safetensors::{Safetensors, Stored};
use super::{SourceError, Tensor, TensorSource, rows_cols};
use crate::model::config::{StoredFp8, StoredInt4, StoredQuantization};

/// The tensors of a quantized checkpoint.
pub struct Dequantized {
    files: Safetensors,
    stored: StoredQuantization,
    /// What can be asked for, ascending.
    names: Vec<String>,
}

/// Beside a weight: scales of rows that came in when it was quantized. Rows stay wide here.
const ROW_SCALES: [&str; 2] = ["input_scale", "input_zero_point"];
/// Zeros of scales, which only some formats' writers leave out where all are zero.
const ZEROS: &str = "weight_zero_point";
/// In place of a weight.
const CODES: &str = "qweight";
/// Beside them.
const OF_CODES: [&str; 3] = ["qzeros", "scales", "g_idx"];

impl Dequantized {
    /// The tensors of `files`, of which some are stored as `stored`.
    pub fn new(files: Safetensors, stored: StoredQuantization) -> Self {
        tracing::info!(
            stored = stored.name(),
            "quantized weights are widened as they load, and rows are not quantized as they were \
             for; --quantization keeps weights small"
        );
        let mut names: Vec<String> =
            files.names().into_iter().filter_map(|name| asked_for(&files, &stored, name)).collect();
        names.sort_unstable();
        Dequantized { files, stored, names }
    }

    /// A weight in e4m3; `None` if it is plain.
    fn fp8(
        &self,
        fp8: &StoredFp8,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Tensor<'_>>, SourceError> {
        let Some(weight) = self.files.stored(name) else { return Ok(None) };
        let scale_names = fp8.scale_names.iter().map(|end| beside(name, end));
        let scales: Vec<Stored<'_>> =
            scale_names.filter_map(|name| self.files.stored(&name)).collect();
        if weight.dtype != fp8::TYPE {
            let useless = scales.first().map(|scales| {
                scales.refuse(format!("is of {name}, which has type {} and no scale", weight.dtype))
            });
            return useless.map_or(Ok(None), Err);
        }
        let zeros = self.files.stored(&beside(name, ZEROS));
        if let Some(zeros) = zeros.filter(|zeros| zeros.bytes.iter().any(|byte| *byte != 0)) {
            return Err(zeros.refuse("is not zero: scales with zeros are not supported"));
        }
        let [scales] = scales[..] else {
            let ends = fp8.scale_names.join(" or ");
            return Err(weight.refuse(format!("has {} tensors {ends}, needs one", scales.len())));
        };
        fp8::widen(weight.of_shape(shape)?, scales, &fp8.grids).map(Some)
    }

    /// A weight in words of codes; `None` if it is plain.
    fn int4(
        &self,
        int4: &StoredInt4,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Tensor<'_>>, SourceError> {
        let Some(codes) = self.files.stored(&beside(name, CODES)) else {
            let useless = OF_CODES.iter().find_map(|end| self.files.stored(&beside(name, end)));
            let useless = useless.filter(|_| self.files.stored(name).is_some());
            let refuse = |part: Stored<'_>| {
                part.refuse(format!("is of {name}, which is plain and has no {CODES}"))
            };
            return useless.map(refuse).map_or(Ok(None), Err);
        };
        if name.strip_suffix(".weight").is_none() {
            return Ok(None);
        }
        if self.files.stored(name).is_some() {
            return Err(codes.refuse(format!("stands for {name}, which is also there")));
        }
        let [zeros, scales, groups] = OF_CODES.map(|end| beside(name, end));
        let words = int4::Words {
            codes,
            zeros: self.files.need(&zeros)?,
            scales: self.files.need(&scales)?,
            groups: self.files.stored(&groups),
        };
        int4::widen(&words, int4, shape).map(Some)
    }
}

impl TensorSource for Dequantized {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        let widened = match &self.stored {
            StoredQuantization::Fp8(fp8) => self.fp8(fp8, name, shape)?,
            StoredQuantization::Int4(int4) => self.int4(int4, name, shape)?,
        };
        match widened {
            Some(tensor) => Ok(tensor),
            None => self.files.tensor(name, shape),
        }
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.files.stored_dtype(name)
    }

    fn release(&self, name: &str) -> Result<(), SourceError> {
        self.files.release(name)?;
        let ends: &[&str] = match &self.stored {
            StoredQuantization::Fp8(fp8) => fp8.scale_names,
            StoredQuantization::Int4(_) => &[CODES, OF_CODES[0], OF_CODES[1], OF_CODES[2]],
        };
        ends.iter().try_for_each(|end| self.files.release(&beside(name, end)))
    }

    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }
}

/// The tensor `end` of the module whose weight this is.
fn beside(weight: &str, end: &str) -> String {
    format!("{}.{end}", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// What a tensor of the files is asked for as; `None` for what only belongs to another.
fn asked_for(files: &Safetensors, stored: &StoredQuantization, name: &str) -> Option<String> {
    let Some((module, end)) = name.rsplit_once('.') else { return Some(name.to_owned()) };
    let weight = format!("{module}.weight");
    let belongs = match stored {
        StoredQuantization::Fp8(fp8) => {
            let is_other = ROW_SCALES.contains(&end) || end == ZEROS;
            let is_part = fp8.scale_names.contains(&end) || is_other;
            is_part && files.stored(&weight).is_some_and(|weight| weight.dtype == fp8::TYPE)
        }
        StoredQuantization::Int4(_) => {
            if end == CODES {
                return Some(weight);
            }
            OF_CODES.contains(&end) && files.stored(&beside(&weight, CODES)).is_some()
        }
    };
    (!belongs).then(|| name.to_owned())
}

/// Room for the f32 of a tensor, zeroed; its size comes from files and configuration.
fn room(about: &Stored<'_>, rows: usize, cols: usize) -> Result<Vec<u8>, SourceError> {
    let refuse = || about.refuse(format!("no memory for {rows} × {cols} numbers"));
    let len = rows.checked_mul(cols).and_then(|len| len.checked_mul(4)).ok_or_else(refuse)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| refuse())?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// A widened tensor.
fn widened(rows: usize, cols: usize, bytes: Vec<u8>) -> Tensor<'static> {
    Tensor { dtype: DType::F32, rows, cols, bytes: Cow::Owned(bytes) }
}

/// The numbers of a tensor of scales; all must be finite.
fn read_scales(scales: Stored<'_>) -> Result<Vec<f32>, SourceError> {
    let numbers = scales.numbers()?;
    let values: Vec<f32> = (0..numbers.cols).map(|index| numbers.at(0, index)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(scales.refuse(format!("has {} as its scale {at}", values[at]))),
    }
}

#[cfg(test)]
mod tests;
