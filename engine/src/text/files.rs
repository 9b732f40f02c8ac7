//! What a model's folder says about text: which files, read with limits, made into one value.
//!
//! At load only. tokenizer.json, tokenizer_config.json and the chat template (a file of its own
//! wins over the configuration) become a [`TextModel`], which never changes afterwards.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::byte_level;
use super::template::{ChatTemplate, TemplateError, TemplateLimits};
use super::tokenizer::{Tokenizer, TokenizerError};

/// Why a model's text files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextFilesError {
    /// Model: a file cannot be read.
    #[error("{name}: {source}")]
    Unreadable {
        /// Which file.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Model: larger than any real one.
    #[error("{0} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge(&'static str),
    /// Model: not the JSON or the text that it should be.
    #[error("{0}: {1}")]
    Damaged(&'static str, String),
    /// Model: no tokenizer.
    #[error("tokenizer.json is missing")]
    Missing,
    /// Model: the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Model: the chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The files' contents, from a folder or embedded in the binary.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextFiles<'a> {
    /// tokenizer.json.
    pub tokenizer: Option<&'a [u8]>,
    /// tokenizer_config.json.
    pub config: Option<&'a [u8]>,
    /// chat_template.jinja.
    pub template: Option<&'a [u8]>,
}

/// Everything that turns a model's text into ids and back.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template; without one it serves completions only.
    pub template: Option<Arc<ChatTemplate>>,
}

impl TextModel {
    /// Reads a model's folder.
    pub fn from_folder(folder: &Path) -> Result<Self, TextFilesError> {
        let tokenizer = read(folder, "tokenizer.json")?;
        let config = read(folder, "tokenizer_config.json")?;
        let template = read(folder, "chat_template.jinja")?;
        Self::from_files(&TextFiles {
            tokenizer: tokenizer.as_deref(),
            config: config.as_deref(),
            template: template.as_deref(),
        })
    }

    /// Makes sense of the files.
    pub fn from_files(files: &TextFiles<'_>) -> Result<Self, TextFilesError> {
        let config: Option<Value> =
            files.config.map(serde_json::from_slice).transpose().map_err(|error| {
                TextFilesError::Damaged("tokenizer_config.json", error.to_string())
            })?;
        let json = files.tokenizer.ok_or(TextFilesError::Missing)?;
        let tokenizer = Tokenizer::from_bytes(json, config.as_ref())?;
        let sources = template_sources(files.template, config.as_ref())?;
        let template = if sources.is_empty() {
            None
        } else {
            let limits = TemplateLimits::default();
            Some(ChatTemplate::with_limits(&sources, tokenizer.named_tokens(), limits)?)
        };
        Ok(Self { tokenizer: Arc::new(tokenizer), template: template.map(Arc::new) })
    }

    /// A made-up tokenizer and template over `vocab_size` ids, for random weights.
    pub fn dummy(vocab_size: u32) -> Result<Self, TextFilesError> {
        let tokenizer = byte_level::byte_level(vocab_size)?;
        let template = ChatTemplate::new(byte_level::CHAT_TEMPLATE, tokenizer.named_tokens())?;
        Ok(Self { tokenizer: Arc::new(tokenizer), template: Some(Arc::new(template)) })
    }
}

/// The largest real tokenizer.json has some 35 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

fn read(folder: &Path, name: &'static str) -> Result<Option<Vec<u8>>, TextFilesError> {
    let unreadable = |source| TextFilesError::Unreadable { name, source };
    let file = match File::open(folder.join(name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TextFilesError::TooLarge(name));
    }
    Ok(Some(bytes))
}

/// The templates by name: the file, else the configuration's string, else its list.
fn template_sources(
    file: Option<&[u8]>,
    config: Option<&Value>,
) -> Result<Vec<(String, String)>, TextFilesError> {
    if let Some(bytes) = file {
        let source = std::str::from_utf8(bytes)
            .map_err(|error| TextFilesError::Damaged("chat_template.jinja", error.to_string()))?;
        return Ok(vec![("default".into(), source.into())]);
    }
    match config.map_or(&Value::Null, |config| &config["chat_template"]) {
        Value::Null => Ok(Vec::new()),
        Value::String(source) => Ok(vec![("default".into(), source.clone())]),
        Value::Array(list) => list
            .iter()
            .map(|entry| {
                let text = |key: &str| entry[key].as_str().map(str::to_string);
                text("name").zip(text("template")).ok_or_else(bad_template)
            })
            .collect(),
        _ => Err(bad_template()),
    }
}

fn bad_template() -> TextFilesError {
    let what = "chat_template is neither a string nor a list of names and templates";
    TextFilesError::Damaged("tokenizer_config.json", what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_template_file_wins_then_the_string_then_the_list() {
        let list = json!({"chat_template": [{"name": "default", "template": "a"}]});
        let one = |source: &str| vec![("default".to_string(), source.to_string())];
        assert_eq!(template_sources(None, Some(&list)).unwrap(), one("a"));
        let text = json!({"chat_template": "b"});
        assert_eq!(template_sources(None, Some(&text)).unwrap(), one("b"));
        assert_eq!(template_sources(Some(b"c"), Some(&text)).unwrap(), one("c"));
        assert!(template_sources(None, Some(&json!({"chat_template": 1}))).is_err());
        assert_eq!(template_sources(None, None).unwrap(), []);
    }

    #[test]
    fn a_missing_or_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = TextModel::from_folder(folder.path()).unwrap_err();
        assert!(matches!(error, TextFilesError::Missing));
        for (name, content) in
            [("tokenizer.json", "{\"model\": 3}"), ("tokenizer_config.json", "[")]
        {
            std::fs::write(folder.path().join(name), content).unwrap();
            let error = TextModel::from_folder(folder.path()).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn a_made_up_model_chats() {
        let model = TextModel::dummy(600).unwrap();
        let message = crate::text::Message {
            role: "user".into(),
            content: crate::text::Content::Text("hi".into()),
            fields: serde_json::Map::new(),
        };
        let chat = crate::text::Chat {
            messages: &[message],
            add_generation_prompt: true,
            continue_final_message: false,
            tools: None,
            kwargs: &serde_json::Map::new(),
            now: std::time::SystemTime::UNIX_EPOCH,
        };
        let text = model.template.unwrap().render(&chat).unwrap();
        assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
        let ids = model.tokenizer.encode(&text, false).unwrap();
        assert_eq!((ids[0], model.tokenizer.decode(&ids, false)), (598, text));
    }
}
