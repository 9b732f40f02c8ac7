//! The files of a checkpoint: opened, bounded, and handed on as bytes.
//!
//! A folder, the embedded demo and a folder without weights all become one [`Checkpoint`], so that
//! everything behind this knows one way only. Nothing in a folder is ever executed.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::config::{ModelConfig, read_config};
use super::error::LoadError;
use super::source::dummy::Dummy;
use super::source::quantized::Dequantized;
use super::source::safetensors::Safetensors;
use super::source::{SourceError, TensorSource};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::file_map::open_regular;

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
            // A link that leads nowhere is a damaged folder, not one without the file.
            match std::fs::symlink_metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                _ => Ok(Some(read_bounded(&path, limit)?.into())),
            }
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

/// A whole regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, SourceError> {
    let file = path.display().to_string();
    let failed = |e: std::io::Error| SourceError::new(&file, None, format!("cannot be read: {e}"));
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, whatever its metadata says.
    let opened = open_regular(path).map_err(failed)?;
    opened.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
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

    /// Puts something where a file belongs.
    type Put = Box<dyn Fn(&Path)>;

    /// What may lie in a folder under the name of a file.
    fn others(place: &Path) -> [(&'static str, Put); 5] {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let socket = std::os::unix::net::UnixListener::bind(place).unwrap();
        [
            ("folder", Box::new(|path| std::fs::create_dir(path).unwrap())),
            ("FIFO", Box::new(|path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap())),
            ("device", Box::new(|path| std::os::unix::fs::symlink("/dev/zero", path).unwrap())),
            ("device", Box::new(|path| std::os::unix::fs::symlink("/dev/tty", path).unwrap())),
            (
                "socket",
                Box::new(move |path| {
                    let address = socket.local_addr().unwrap();
                    let place = address.as_pathname().unwrap();
                    std::os::unix::fs::symlink(place, path).unwrap();
                }),
            ),
        ]
    }

    /// A checkpoint's folder with every file that is read of one, sharded or not.
    fn checkpoint(is_sharded: bool) -> tempfile::TempDir {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
        let folder = tempfile::tempdir().unwrap();
        let from = goldens.join(if is_sharded { "qwen3_moe_sharded" } else { "llama3" });
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        for name in ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        folder
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_name_and_never_waited_for() {
        let sockets = tempfile::tempdir().unwrap();
        let small = [
            "config.json",
            "generation_config.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "tokenizer.json",
            "tokenizer.model",
            "x.tiktoken",
        ];
        let large = [(false, "model.safetensors"), (false, "model.safetensors.index.json")];
        let shards = [
            (true, "model.safetensors.index.json"),
            (true, "model-00001-of-00005.safetensors"),
            (true, "model-00005-of-00005.safetensors"),
        ];
        let files = small.map(|name| (false, name)).into_iter().chain(large).chain(shards);
        for (number, (is_sharded, name)) in files.enumerate() {
            for (kind, put) in others(&sockets.path().join(number.to_string())) {
                let folder = checkpoint(is_sharded);
                let path = folder.path().join(name);
                let _ = std::fs::remove_file(&path);
                put(&path);
                let source = ModelSource::Folder(folder.path().to_owned());
                let said = Checkpoint::open(&source).map(drop).unwrap_err().to_string();
                let told = format!("{name}: cannot be read: is a {kind}, not a regular file");
                assert!(said.ends_with(&told), "{name}, {kind}: {said}");
            }
        }
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_missing_file() {
        let folder = checkpoint(false);
        let source = ModelSource::Folder(folder.path().to_owned());
        Checkpoint::open(&source).unwrap();
        let path = folder.path().join("chat_template.jinja");
        std::fs::remove_file(&path).unwrap();
        Checkpoint::open(&source).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        let said = Checkpoint::open(&source).map(drop).unwrap_err().to_string();
        assert!(said.contains("chat_template.jinja: cannot be read"), "{said}");
    }

    #[test]
    fn a_folder_without_configuration_is_refused_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let source = ModelSource::Folder(folder.path().to_owned());
        let error = Checkpoint::open(&source).map(drop).unwrap_err().to_string();
        assert!(error.contains("config.json: cannot be read"), "{error}");
    }
}
