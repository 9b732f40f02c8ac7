//! The files of a checkpoint: opened, bounded, and handed on as bytes.
//!
//! A folder, the embedded demo and a folder without weights all become one [`Checkpoint`], so that
//! everything behind this knows one way only. Nothing in a folder is ever executed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::config::{ModelConfig, read_config};
use super::error::LoadError;
use super::source::dummy::Dummy;
use super::source::quantized::Dequantized;
use super::source::safetensors::Safetensors;
use super::source::{SourceError, TensorSource};
use pagoda_kernels::dtype::DType;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder as published on the Hugging Face hub.
    Folder(PathBuf),
    /// The model that is part of the program.
    Demo,
    /// The configuration of a folder, with random weights.
    Dummy {
        /// Holds config.json at least.
        folder: PathBuf,
        /// Changes every weight.
        seed: u64,
    },
}

/// Files that the text half of the engine reads.
#[derive(Clone, Debug, Default)]
pub struct ModelFiles {
    /// tokenizer.json; a dummy's folder may have none.
    pub tokenizer: Option<Bytes>,
    /// What older checkpoints have instead, with its name: tokenizer.model or *.tiktoken. Not read
    /// where there is a tokenizer.json.
    pub vocabulary: Option<(String, Bytes)>,
    /// tokenizer_config.json: special tokens, and the chat template of older checkpoints.
    pub tokenizer_config: Option<Bytes>,
    /// chat_template.jinja of newer checkpoints.
    pub chat_template: Option<String>,
    /// generation_config.json.
    pub generation_config: Option<Bytes>,
}

/// A checkpoint, opened and not yet loaded.
pub struct Checkpoint {
    /// Where it is, for messages.
    pub place: String,
    /// config.json, read.
    pub config: ModelConfig,
    /// The other files.
    pub files: ModelFiles,
    /// The weights.
    pub tensors: Box<dyn TensorSource>,
}

const MAX_JSON_BYTES: u64 = 16 << 20;
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The largest real one has some 5 MB.
const MAX_VOCABULARY_BYTES: u64 = 64 << 20;

impl Checkpoint {
    /// Opens a source: reads the small files, checks the headers of the large ones.
    pub fn open(source: &ModelSource) -> Result<Self, LoadError> {
        match source {
            ModelSource::Demo => crate::demo::open(),
            ModelSource::Folder(folder) => {
                Self::open_folder(folder, |config| open_tensors(folder, config))
            }
            ModelSource::Dummy { folder, seed } => Self::open_folder(folder, |config| {
                let dtype = config.dtype.unwrap_or(DType::Bf16);
                Ok(Box::new(Dummy { seed: *seed, dtype }))
            }),
        }
    }

    fn open_folder(
        folder: &Path,
        open_tensors: impl FnOnce(&ModelConfig) -> Result<Box<dyn TensorSource>, SourceError>,
    ) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let config = read_bounded(&path, MAX_JSON_BYTES)?;
        let config = read_config(&path.display().to_string(), &config)?;
        let tensors = open_tensors(&config)?;
        let files = ModelFiles::read(folder)?;
        Ok(Checkpoint { place: folder.display().to_string(), config, files, tensors })
    }
}

/// The tensors of a folder; those that are quantized come as plain ones.
fn open_tensors(folder: &Path, config: &ModelConfig) -> Result<Box<dyn TensorSource>, SourceError> {
    let files = Safetensors::open(folder)?;
    Ok(match &config.quantization {
        None => Box::new(files),
        Some(stored) => Box::new(Dequantized::new(files, stored.clone())),
    })
}

impl ModelFiles {
    /// Reads a folder's files, each within its limit.
    pub fn read(folder: &Path) -> Result<Self, SourceError> {
        let optional = |name: &str, limit: u64| -> Result<Option<Bytes>, SourceError> {
            let path = folder.join(name);
            let bytes = path.exists().then(|| read_bounded(&path, limit)).transpose()?;
            Ok(bytes.map(Bytes::from))
        };
        let chat_template = match optional("chat_template.jinja", MAX_JSON_BYTES)? {
            Some(bytes) => Some(template_text(folder, bytes)?),
            None => None,
        };
        let tokenizer = optional("tokenizer.json", MAX_TOKENIZER_BYTES)?;
        let mut vocabulary = None;
        if let (None, Some(name)) = (&tokenizer, vocabulary_name(folder)) {
            let bytes = optional(&name, MAX_VOCABULARY_BYTES)?;
            vocabulary = bytes.map(|bytes| (name, bytes));
        }
        Ok(Self {
            tokenizer,
            vocabulary,
            tokenizer_config: optional("tokenizer_config.json", MAX_JSON_BYTES)?,
            chat_template,
            generation_config: optional("generation_config.json", MAX_JSON_BYTES)?,
        })
    }
}

fn vocabulary_name(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    vocabulary_among(names.iter().map(String::as_str))
}

/// tokenizer.model, or else the first file that ends in .tiktoken.
fn vocabulary_among<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let known = |name: &&str| *name == "tokenizer.model" || name.ends_with(".tiktoken");
    names.filter(known).min_by_key(|name| (*name != "tokenizer.model", *name)).map(str::to_owned)
}

/// Those of a checkpoint's files that are read besides weights.
pub(crate) fn small_files<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    const OTHERS: [&str; 4] =
        ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
    let has = |wanted: &str| names.clone().any(|name| name == wanted);
    let mut small: Vec<String> = OTHERS.map(str::to_owned).into();
    small.retain(|name| has(name));
    match has("tokenizer.json") {
        true => small.push("tokenizer.json".to_owned()),
        false => small.extend(vocabulary_among(names)),
    }
    small
}

fn template_text(folder: &Path, bytes: Bytes) -> Result<String, SourceError> {
    String::from_utf8(bytes.into()).map_err(|_| {
        let file = folder.join("chat_template.jinja").display().to_string();
        SourceError::new(&file, None, "is not UTF-8")
    })
}

/// A whole file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, SourceError> {
    let file = path.display().to_string();
    let failed = |e: std::io::Error| SourceError::new(&file, None, format!("cannot be read: {e}"));
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, whatever its metadata says.
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(SourceError::new(&file, None, format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beyond_its_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(read_bounded(&path, 4).unwrap_err().to_string().ends_with("larger than 4 bytes"));
        assert!(read_bounded(folder.path(), 4).is_err());
    }

    #[test]
    fn a_folder_without_configuration_is_refused_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let source = ModelSource::Folder(folder.path().to_owned());
        let error = Checkpoint::open(&source).map(drop).unwrap_err().to_string();
        assert!(error.contains("config.json: cannot be read"), "{error}");
    }
}
