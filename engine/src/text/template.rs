//! Chat messages to prompt text, by the model's own template in a sandbox.
//!
//! A template is code from a model's folder that runs over a client's text. It gets no files, no
//! other templates and no clock but the one given; its instructions, recursion and output are
//! bounded. The interpreter has no bound on a string that a template builds for itself (`a ~ a`,
//! over and over): no client brings a template, and a folder's has the trust of its weights. The
//! dialect is that of transformers: a model was trained on the text which that renderer makes, so
//! every difference in a space would cost accuracy without an error.

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json, json};

mod sandbox;

use sandbox::{BoundedText, Raised, rewrite_generation_blocks};

/// Why a chat could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Model: the template cannot be used at all; reported at load.
    #[error("chat template: {0}")]
    Damaged(String),
    /// Client: the template itself refuses these messages, in its own words.
    #[error("{0}")]
    Raised(String),
    /// Client: the messages have a shape that the template does not handle.
    #[error("the chat template cannot render these messages: {0}")]
    Unfit(String),
    /// Client: rendering takes more work or text than allowed.
    #[error("rendering the chat takes more than the allowed {0}")]
    TooMuch(&'static str),
    /// Client: a template argument would replace something of ours.
    #[error("chat_template_kwargs must not set {0:?}")]
    ReservedKwarg(String),
    /// Client: both ways to end the prompt at once.
    #[error("continue_final_message and add_generation_prompt exclude each other")]
    TwoEndings,
    /// Client: there is no final message with text to continue.
    #[error("continue_final_message needs a final message whose text the template keeps")]
    NothingToContinue,
}

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, …; the template decides which it takes.
    pub role: String,
    /// What was said.
    pub content: Content,
    /// Other fields (`name`, `tool_calls`, `reasoning_content`, …); null ones count as absent.
    pub fields: Map<String, Json>,
}

/// The content of a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Content {
    /// Absent or null.
    #[default]
    None,
    /// A string.
    Text(String),
    /// A list of text parts.
    Parts(Vec<String>),
}

/// What a template is given.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// The conversation, oldest first.
    pub messages: &'a [Message],
    /// End with the beginning of an assistant's message.
    pub add_generation_prompt: bool,
    /// End inside the last message, which the model continues.
    pub continue_final_message: bool,
    /// Tool definitions, as the client wrote them.
    pub tools: Option<&'a Json>,
    /// `chat_template_kwargs`: further variables.
    pub kwargs: &'a Map<String, Json>,
    /// For `strftime_now`.
    pub now: SystemTime,
}

/// How much a template may do for one chat.
#[derive(Clone, Copy, Debug)]
pub struct TemplateLimits {
    /// Instructions; a long chat takes some hundred thousand.
    pub fuel: u64,
    /// Bytes of rendered text.
    pub output_bytes_max: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self { fuel: 10_000_000, output_bytes_max: 64 << 20 }
    }
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    names: Vec<String>,
    named_tokens: BTreeMap<String, String>,
    limits: TemplateLimits,
    takes: Takes,
}

/// What a template expects as a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Text,
    Parts,
    Both,
}

/// Names that `chat_template_kwargs` must leave alone: what we set, and what transformers takes as
/// arguments of its own.
const RESERVED: [&str; 24] = [
    "messages",
    "tools",
    "documents",
    "conversation",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "loop",
    "self",
    "cycler",
    "joiner",
];

/// As in transformers; ends in a space, so that a template which trims content shows itself.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl ChatTemplate {
    /// Compiles a template. `named_tokens` become variables (`bos_token`, …).
    pub fn new(
        source: &str,
        named_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, TemplateError> {
        let named = [("default".to_string(), source.to_string())];
        Self::with_limits(&named, named_tokens, TemplateLimits::default())
    }

    /// Compiles a model's templates by name: `tool_use` serves chats with tools, `default` all
    /// others.
    pub fn with_limits(
        sources: &[(String, String)],
        named_tokens: &BTreeMap<String, String>,
        limits: TemplateLimits,
    ) -> Result<Self, TemplateError> {
        let names: Vec<String> = sources.iter().map(|(name, _)| name.clone()).collect();
        if !names.iter().any(|name| name == "default") && names.len() != 1 {
            let what = format!("none of the templates {names:?} is named \"default\"");
            return Err(TemplateError::Damaged(what));
        }
        let damaged = |error: Error| TemplateError::Damaged(describe(&error));
        let mut env = environment(limits).map_err(damaged)?;
        for (name, source) in sources {
            env.add_template_owned(name.clone(), rewrite_generation_blocks(source))
                .map_err(damaged)?;
        }
        let named_tokens = named_tokens.clone();
        let mut template = Self { env, names, named_tokens, limits, takes: Takes::Text };
        template.takes = template.probe();
        Ok(template)
    }

    /// The prompt's text. Encode it without adding special tokens: the template wrote them.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        if chat.add_generation_prompt && chat.continue_final_message {
            return Err(TemplateError::TwoEndings);
        }
        let reserved = |key: &&String| {
            RESERVED.contains(&key.as_str()) || self.named_tokens.contains_key(*key)
        };
        if let Some(key) = chat.kwargs.keys().find(reserved) {
            return Err(TemplateError::ReservedKwarg(key.clone()));
        }
        let mut messages: Vec<Json> =
            chat.messages.iter().map(|message| self.message_json(message)).collect();
        if !chat.continue_final_message {
            return self.render_json(chat, messages);
        }
        messages.last_mut().and_then(mark_content).ok_or(TemplateError::NothingToContinue)?;
        let mut text = self.render_json(chat, messages)?;
        let mark = text.rfind(CONTINUE_MARK.trim_end()).ok_or(TemplateError::NothingToContinue)?;
        let trimmed = !text[mark..].starts_with(CONTINUE_MARK);
        text.truncate(mark);
        if trimmed {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    fn render_json(&self, chat: &Chat<'_>, messages: Vec<Json>) -> Result<String, TemplateError> {
        let name = ["tool_use", "default"]
            .into_iter()
            .filter(|&name| name == "default" || chat.tools.is_some())
            .find(|&name| self.names.iter().any(|known| known == name))
            .unwrap_or(&self.names[0]);
        let json = |value: &Json| Value::from(Serde(value));
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (name, token) in &self.named_tokens {
            context.insert(name.clone(), token.into());
        }
        for (name, value) in chat.kwargs {
            context.insert(name.clone(), json(value));
        }
        context.insert("messages".into(), json(&Json::from(messages)));
        context.insert("tools".into(), chat.tools.map_or_else(|| Value::from(()), json));
        context.insert("documents".into(), Value::from(()));
        context.insert("add_generation_prompt".into(), chat.add_generation_prompt.into());
        let now = chat.now;
        let strftime_now = move |format: &str| {
            super::strftime::strftime(now, format).map_err(|directive| {
                let what = format!("strftime_now does not know {directive}");
                Error::new(ErrorKind::InvalidOperation, what)
            })
        };
        context.insert("strftime_now".into(), Value::from_function(strftime_now));

        let mut out = BoundedText::new(self.limits.output_bytes_max);
        let outcome = self
            .env
            .get_template(name)
            .and_then(|template| template.render_captured_to(context, &mut out).map(|_| ()));
        match outcome {
            Ok(()) => out.into_string(),
            Err(_) if out.is_full() => Err(TemplateError::TooMuch("text")),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                Err(TemplateError::TooMuch("instructions"))
            }
            Err(error) => {
                Err(Raised::find(&error).unwrap_or_else(|| TemplateError::Unfit(describe(&error))))
            }
        }
    }

    fn message_json(&self, message: &Message) -> Json {
        let mut map = Map::new();
        map.insert("role".into(), message.role.as_str().into());
        let parts = |texts: &[&str]| -> Json {
            texts.iter().map(|text| json!({ "type": "text", "text": text })).collect()
        };
        match (&message.content, self.takes) {
            (Content::None, _) => {}
            (Content::Text(text), Takes::Parts) => {
                map.insert("content".into(), parts(&[text]));
            }
            (Content::Text(text), _) => {
                map.insert("content".into(), text.as_str().into());
            }
            (Content::Parts(texts), Takes::Text) => {
                map.insert("content".into(), texts.join("\n").into());
            }
            (Content::Parts(texts), _) => {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                map.insert("content".into(), parts(&texts));
            }
        }
        for (key, value) in message.fields.iter().filter(|(_, value)| !value.is_null()) {
            map.insert(key.clone(), value.clone());
        }
        if !map.contains_key("reasoning_content") {
            let reasoning = map.get("reasoning").or_else(|| map.get("thinking")).cloned();
            map.extend(reasoning.map(|value| ("reasoning_content".to_string(), value)));
        }
        Json::Object(map)
    }

    /// Finds out what the template takes, by trying: a template that writes the probe's text, and
    /// not the list around it, takes parts.
    fn probe(&self) -> Takes {
        const PROBE: &str = "3141592653589793";
        let writes = |content: Json| {
            let chat = Chat {
                messages: &[],
                add_generation_prompt: true,
                continue_final_message: false,
                tools: None,
                kwargs: &Map::new(),
                now: SystemTime::UNIX_EPOCH,
            };
            let messages = vec![json!({ "role": "user", "content": content })];
            let text = self.render_json(&chat, messages).unwrap_or_default();
            text.contains(PROBE) && !text.contains("'text'") && !text.contains("\"text\"")
        };
        match (writes(json!(PROBE)), writes(json!([{ "type": "text", "text": PROBE }]))) {
            (true, true) => Takes::Both,
            (false, true) => Takes::Parts,
            (_, false) => Takes::Text,
        }
    }
}

fn environment(limits: TemplateLimits) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(limits.fuel));
    // A level costs some kilobytes of stack, and pool threads have two megabytes.
    env.set_recursion_limit(200);
    env.set_debug(false);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", super::tojson::tojson);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Raised(message).into())
    });
    Ok(env)
}

/// Appends the mark to a message's text; none where it has no text.
fn mark_content(message: &mut Json) -> Option<()> {
    let content = message.get_mut("content")?;
    let text = match content {
        Json::Array(parts) => parts.last_mut()?.get_mut("text")?,
        text => text,
    };
    *text = Json::from(text.as_str()?.to_string() + CONTINUE_MARK);
    Some(())
}

/// What went wrong and where, without the client's text.
fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

#[cfg(test)]
mod tests;
