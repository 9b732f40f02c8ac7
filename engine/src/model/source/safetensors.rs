//! Tensors in safetensors files: one file, or shards named by model.safetensors.index.json.
//!
//! Files are mapped, never copied. Every header is checked whole before the first tensor is given
//! out; an index may only name plain files beside itself.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pagoda_kernels::dtype::{DType, HostTensor};
use pagoda_kernels::file_map::FileMap;

use super::header::{self, Entry};
use super::{SourceError, Tensor, TensorSource, rows_cols};
use crate::model::files::read_bounded;

/// Names the file of each tensor, where there are many.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Holds all tensors, where there is no index.
pub(crate) const SINGLE: &str = "model.safetensors";
/// An index lists tensors; 100,000 of them take 10 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// No file system has longer names.
const MAX_NAME_BYTES: usize = 255;
/// Mapped at once.
const MAX_SHARDS: usize = 4096;

/// The tensors of one or many files.
#[derive(Debug)]
pub struct Safetensors {
    shards: Vec<Shard>,
    /// Shard and place of each tensor.
    entries: BTreeMap<String, (usize, Entry)>,
}

/// A tensor as it lies in its file, of any type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'a> {
    file: &'a str,
    name: &'a str,
    /// As the file names it.
    pub(super) dtype: &'a str,
    /// Dimensions.
    pub(super) shape: &'a [usize],
    /// Elements, little-endian.
    pub(super) bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Says what is wrong with it.
    pub(super) fn refuse(&self, reason: impl Into<String>) -> SourceError {
        SourceError::new(self.file, Some(self.name), reason)
    }

    /// Itself, if it has this shape.
    pub(super) fn of_shape(self, shape: &[usize]) -> Result<Self, SourceError> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(self.refuse(format!("has shape {:?}, config.json asks for {shape:?}", self.shape)))
    }

    /// Itself, if it has this type.
    pub(super) fn of_type(self, dtype: &str) -> Result<Self, SourceError> {
        if self.dtype == dtype {
            return Ok(self);
        }
        Err(self.refuse(format!("has type {}, expected {dtype}", self.dtype)))
    }

    /// Its numbers as one row, if it has a type that can be read.
    pub(super) fn numbers(self) -> Result<HostTensor<'a>, SourceError> {
        let dtype = readable_dtype(self.dtype).ok_or_else(|| {
            self.refuse(format!("has type {}, only F32, BF16 and F16 are supported", self.dtype))
        })?;
        HostTensor::new(dtype, 1, self.bytes.len() / dtype.bytes(), self.bytes)
            .ok_or_else(|| self.refuse("has no whole number of elements"))
    }
}

#[derive(Debug)]
struct Shard {
    file: String,
    bytes: ShardBytes,
}

#[derive(Debug)]
enum ShardBytes {
    Mapped(FileMap),
    Embedded(&'static [u8]),
}

impl Safetensors {
    /// Opens the checkpoint in `folder`.
    pub fn open(folder: &Path) -> Result<Self, SourceError> {
        let index = folder.join(INDEX);
        // A link that leads nowhere is there, too, and is told by its name.
        if index.symlink_metadata().is_ok() {
            return Self::open_shards(folder, &index);
        }
        let single = folder.join(SINGLE);
        if !single.exists() {
            let reason = format!("has no {SINGLE} and no {INDEX}");
            return Err(SourceError::new(&folder.display().to_string(), None, reason));
        }
        let mut source = Safetensors { shards: Vec::new(), entries: BTreeMap::new() };
        source.add(map_shard(&single)?)?;
        Ok(source)
    }

    /// A file that is part of the program; `file` names it in errors.
    pub fn embedded(file: &str, bytes: &'static [u8]) -> Result<Self, SourceError> {
        let mut source = Safetensors { shards: Vec::new(), entries: BTreeMap::new() };
        source.add(Shard { file: file.to_owned(), bytes: ShardBytes::Embedded(bytes) })?;
        Ok(source)
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self, SourceError> {
        let file = index.display().to_string();
        let listed = read_index(index)?;
        let names: BTreeSet<&String> = listed.values().collect();
        let mut source = Safetensors { shards: Vec::new(), entries: BTreeMap::new() };
        for name in names {
            source.add(map_shard(&folder.join(name))?)?;
        }
        for (tensor, shard) in &listed {
            let place = source.entries.get(tensor).map(|(index, _)| &source.shards[*index].file);
            if place.is_none_or(|file| Path::new(file) != folder.join(shard)) {
                let reason = format!("is listed in {shard}, which does not hold it");
                return Err(SourceError::new(&file, Some(tensor), reason));
            }
        }
        Ok(source)
    }

    /// Takes in a shard's header.
    fn add(&mut self, shard: Shard) -> Result<(), SourceError> {
        let parsed = header::parse(shard.bytes.all());
        if let ShardBytes::Mapped(map) = &shard.bytes {
            map.check().map_err(|e| SourceError::new(&shard.file, None, e.to_string()))?;
        }
        let entries = parsed
            .map_err(|(name, reason)| SourceError::new(&shard.file, name.as_deref(), reason))?;
        for (name, entry) in entries {
            if let Some((other, _)) = self.entries.get(&name) {
                let reason = format!("is also in {}", self.shards[*other].file);
                return Err(SourceError::new(&shard.file, Some(&name), reason));
            }
            self.entries.insert(name, (self.shards.len(), entry));
        }
        self.shards.push(shard);
        Ok(())
    }

    /// A tensor of any type, if it is there.
    pub(super) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let (name, (shard, entry)) = self.entries.get_key_value(name)?;
        let Shard { file, bytes } = &self.shards[*shard];
        let bytes = &bytes.all()[entry.bytes.clone()];
        Some(Stored { file, name, dtype: &entry.dtype, shape: &entry.shape, bytes })
    }

    /// A tensor of any type.
    pub(super) fn need(&self, name: &str) -> Result<Stored<'_>, SourceError> {
        match self.stored(name) {
            Some(stored) => Ok(stored),
            None => {
                let files = match &self.shards[..] {
                    [one] => one.file.clone(),
                    many => format!("{} files beside {}", many.len(), many[0].file),
                };
                Err(SourceError::new(&files, Some(name), "is missing"))
            }
        }
    }
}

impl TensorSource for Safetensors {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, SourceError> {
        let stored = self.need(name)?.of_shape(shape)?;
        let Some((rows, cols)) = rows_cols(shape) else {
            return Err(stored.refuse(format!("cannot have shape {shape:?}")));
        };
        let HostTensor { dtype, bytes, .. } = stored.numbers()?;
        Ok(Tensor { dtype, rows, cols, bytes: Cow::Borrowed(bytes) })
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.entries.get(name).and_then(|(_, entry)| readable_dtype(&entry.dtype))
    }

    fn release(&self, name: &str) -> Result<(), SourceError> {
        let Some((shard, entry)) = self.entries.get(name) else { return Ok(()) };
        let Shard { file, bytes } = &self.shards[*shard];
        let ShardBytes::Mapped(map) = bytes else { return Ok(()) };
        map.release(entry.bytes.clone());
        map.check().map_err(|error| SourceError::new(file, Some(name), error.to_string()))
    }

    fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }
}

impl ShardBytes {
    fn all(&self) -> &[u8] {
        match self {
            ShardBytes::Mapped(map) => map.bytes(),
            ShardBytes::Embedded(bytes) => bytes,
        }
    }
}

fn map_shard(path: &Path) -> Result<Shard, SourceError> {
    let file = path.display().to_string();
    match FileMap::open(path) {
        Ok(map) => Ok(Shard { file, bytes: ShardBytes::Mapped(map) }),
        Err(error) => Err(SourceError::new(&file, None, format!("cannot be read: {error}"))),
    }
}

fn readable_dtype(name: &str) -> Option<DType> {
    match name {
        "F32" => Some(DType::F32),
        "BF16" => Some(DType::Bf16),
        "F16" => Some(DType::F16),
        _ => None,
    }
}

/// The files that an index names, ascending: plain names beside itself.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>, SourceError> {
    let names: BTreeSet<String> = read_index(index)?.into_values().collect();
    Ok(names.into_iter().collect())
}

fn read_index(index: &Path) -> Result<BTreeMap<String, String>, SourceError> {
    let bytes = read_bounded(index, MAX_INDEX_BYTES)?;
    let refuse = |reason| SourceError::new(&index.display().to_string(), None, reason);
    parse_index(&bytes).map_err(refuse)
}

/// File of each tensor. A name that leaves the folder is refused.
fn parse_index(bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(bytes).map_err(|error| format!("is damaged: {error}"))?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    if files.is_empty() || files.len() > MAX_SHARDS {
        return Err(format!("names {} files, expected 1 to {MAX_SHARDS}", files.len()));
    }
    for file in files {
        let is_plain = !file.contains(['/', '\\', '\0', ':']) && !file.starts_with('.');
        if !is_plain || !file.ends_with(".safetensors") || file.len() > MAX_NAME_BYTES {
            return Err(format!("names {file:?}, expected a .safetensors file beside itself"));
        }
    }
    Ok(index.weight_map)
}

#[cfg(test)]
mod tests;
