//! What a model's files say about text, made into one value.
//!
//! At load only. tokenizer.json (or an older vocabulary file), tokenizer_config.json and the chat
//! template (a file of its own wins over the configuration, and either over the family's) become a
//! [`TextModel`], which never changes afterwards.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::byte_level;
use super::template::{ChatTemplate, Rendering, TemplateError, TemplateLimits, TemplateSources};
use super::tokenizer::{Tokenizer, TokenizerError};
use crate::model::ModelFiles;
use crate::model::error::readable;
use crate::model::families::Dialect;
use crate::model::source::SourceError;

/// Why a model's text files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextFilesError {
    /// Model: a file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] SourceError),
    /// Model: not the JSON that it should be.
    #[error("{}: {}", .0, readable(.1))]
    Damaged(&'static str, String),
    /// Model: no tokenizer.
    #[error("tokenizer.json is missing, and so are tokenizer.model and any *.tiktoken")]
    Missing,
    /// Model: the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Model: the chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Everything that turns a model's text into ids and back.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template; without one it serves completions only.
    pub template: Option<Arc<ChatTemplate>>,
    /// Tokens that end an answer in the dialect that it speaks, ascending. The checkpoint's own end
    /// tokens are not among them.
    pub ends: Vec<u32>,
}

impl TextModel {
    /// Reads a model's folder, whose template is trusted. `dialects` are those of its family.
    pub fn from_folder(folder: &Path, dialects: &[&Dialect]) -> Result<Self, TextFilesError> {
        Self::from_files(&ModelFiles::read(folder)?, dialects, &Rendering::Here)
    }

    /// Makes sense of the files, whose template is rendered where `rendering` says.
    pub fn from_files(
        files: &ModelFiles,
        dialects: &[&Dialect],
        rendering: &Rendering,
    ) -> Result<Self, TextFilesError> {
        let config = files.tokenizer_config.as_deref();
        let config: Option<Value> = config
            .map(serde_json::from_slice)
            .transpose()
            .map_err(|error| TextFilesError::Damaged("tokenizer_config.json", error.to_string()))?;
        let tokenizer = match (&files.tokenizer, &files.vocabulary) {
            (Some(json), _) => Tokenizer::from_bytes(json, config.as_ref())?,
            (None, Some((name, bytes))) => {
                Tokenizer::from_vocabulary(name, bytes, dialects, config.as_ref())?
            }
            (None, None) => return Err(TextFilesError::Missing),
        };
        let knows = |mark: &&str| tokenizer.id(mark).is_some();
        let dialect = dialects.iter().find(|dialect| dialect.marks.iter().all(&knows));
        let mut templates = template_sources(files.chat_template.as_deref(), config.as_ref())?;
        let mut rendering = rendering;
        if let (true, Some(dialect)) = (templates.is_empty(), dialect) {
            tracing::info!("the checkpoint has no chat template: that of its family is used");
            templates.push(("default".into(), dialect.template.into()));
            // It is ours.
            rendering = &Rendering::Here;
        }
        let template = if templates.is_empty() {
            None
        } else {
            let named_tokens = tokenizer.named_tokens().clone();
            let sources = TemplateSources { templates, named_tokens };
            Some(ChatTemplate::with_limits(sources, rendering, TemplateLimits::default())?)
        };
        let ends = dialect.map_or(&[][..], |dialect| dialect.ends);
        let mut ends: Vec<u32> = ends.iter().filter_map(|end| tokenizer.id(end)).collect();
        ends.sort_unstable();
        Ok(Self { tokenizer: Arc::new(tokenizer), template: template.map(Arc::new), ends })
    }

    /// A made-up tokenizer and template over `vocab_size` ids, for random weights.
    pub fn dummy(vocab_size: u32) -> Result<Self, TextFilesError> {
        let tokenizer = byte_level::byte_level(vocab_size)?;
        let template = ChatTemplate::new(byte_level::CHAT_TEMPLATE, tokenizer.named_tokens())?;
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            template: Some(Arc::new(template)),
            ends: Vec::new(),
        })
    }
}

/// The templates by name: the file, else the configuration's string, else its list.
fn template_sources(
    file: Option<&str>,
    config: Option<&Value>,
) -> Result<Vec<(String, String)>, TextFilesError> {
    if let Some(source) = file {
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
        assert_eq!(template_sources(Some("c"), Some(&text)).unwrap(), one("c"));
        assert!(template_sources(None, Some(&json!({"chat_template": 1}))).is_err());
        assert_eq!(template_sources(None, None).unwrap(), []);
    }

    #[test]
    fn a_missing_or_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = TextModel::from_folder(folder.path(), &[]).unwrap_err();
        assert!(matches!(error, TextFilesError::Missing));
        for (name, content) in
            [("tokenizer.json", "{\"model\": 3}"), ("tokenizer_config.json", "[")]
        {
            std::fs::write(folder.path().join(name), content).unwrap();
            let error = TextModel::from_folder(folder.path(), &[]).unwrap_err().to_string();
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
