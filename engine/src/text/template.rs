//! Chat messages to prompt text, by the model's own template in a sandbox.
//!
//! A template is code from a model's folder that runs over a client's text. It gets no files, no
//! other templates and no clock but the one given; its instructions, recursion and output are
//! bounded. A folder's is rendered in a process of its own, whose memory and time the system bounds:
//! the interpreter has no bound on what a template builds for itself. The dialect is that of
//! transformers: a model was trained on the text which that renderer makes, so every difference in a
//! space would cost accuracy without an error.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use self::apart::Apart;
use self::compiled::Compiled;
use crate::model::error::readable;

/// Rendered here.
mod compiled;

/// Rendered in a process of its own: who asks.
mod apart;

/// Rendered in a process of its own: who answers.
mod worker;

/// What the two say to each other.
mod wire;

/// What keeps a template in bounds.
mod sandbox;

pub use apart::Program;
pub use worker::answer as answer_renderings;

/// Why a chat could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TemplateError {
    /// Model: the template cannot be used at all; reported at load.
    #[error("chat template: {}", readable(.0))]
    Damaged(String),
    /// Client: the template itself refuses these messages, in its own words.
    #[error("{0}")]
    Raised(String),
    /// Client: the messages have a shape that the template does not handle.
    #[error("the chat template cannot render these messages: {0}")]
    Unfit(String),
    /// Client: rendering takes more work or text than allowed.
    #[error("rendering the chat takes more than the allowed {0}")]
    TooMuch(Bound),
    /// Client: a template argument would replace something of ours.
    #[error("chat_template_kwargs must not set {0:?}")]
    ReservedKwarg(String),
    /// Client: both ways to end the prompt at once.
    #[error("continue_final_message and add_generation_prompt exclude each other")]
    TwoEndings,
    /// Client: there is no final message with text to continue.
    #[error("continue_final_message needs a final message whose text the template keeps")]
    NothingToContinue,
    /// Us: the process that renders cannot be started, or ended for no reason of the template's.
    #[error("the process that renders chat templates {0}")]
    Process(String),
}

/// What rendering may take so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// Bytes that it writes.
    Text,
    /// Instructions of the template.
    Instructions,
    /// Memory of a process.
    Memory,
    /// Time of a processor.
    Time,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bound::Text => "text",
            Bound::Instructions => "instructions",
            Bound::Memory => "memory",
            Bound::Time => "time",
        })
    }
}

impl TemplateError {
    /// The same of a message of one word, which makes the template useless.
    fn at_load(self) -> Self {
        match self {
            TemplateError::TooMuch(bound) => {
                TemplateError::Damaged(format!("one word takes more than the allowed {bound}"))
            }
            other => other,
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, …; the template decides which it takes.
    pub role: String,
    /// What was said.
    pub content: Content,
    /// Other fields (`name`, `tool_calls`, `reasoning_content`, …); null ones count as absent.
    pub fields: Map<String, Json>,
}

/// The content of a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Serialize)]
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
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TemplateLimits {
    /// Instructions; a long chat takes some hundred thousand.
    pub fuel: u64,
    /// Bytes of rendered text.
    pub output_bytes_max: usize,
    /// Bytes that a process of its own may hold, the program's own few MiB included.
    pub memory_bytes_max: u64,
    /// Seconds of a processor that it may take, rounded up to whole ones.
    pub cpu_seconds_max: u64,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self {
            fuel: 10_000_000,
            output_bytes_max: 64 << 20,
            memory_bytes_max: 512 << 20,
            cpu_seconds_max: 10,
        }
    }
}

/// Templates of a model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TemplateSources {
    /// By name: `tool_use` serves chats with tools, `default` all others.
    pub templates: Vec<(String, String)>,
    /// Variables (`bos_token`, …).
    pub named_tokens: BTreeMap<String, String>,
}

/// Where templates are rendered that are not ours.
#[derive(Clone, Debug, Default)]
pub enum Rendering {
    /// In this process: for whoever trusts them.
    #[default]
    Here,
    /// In processes of this program, which end with the template.
    Apart(Program),
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Here(Box<Compiled>),
    Apart(Apart),
}

impl ChatTemplate {
    /// Compiles a template of ours. `named_tokens` become variables (`bos_token`, …).
    pub fn new(
        source: &str,
        named_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, TemplateError> {
        let templates = vec![("default".to_string(), source.to_string())];
        let sources = TemplateSources { templates, named_tokens: named_tokens.clone() };
        Self::with_limits(sources, &Rendering::Here, TemplateLimits::default())
    }

    /// Compiles a model's templates where they are to be rendered, and renders a word by each.
    pub fn with_limits(
        sources: TemplateSources,
        rendering: &Rendering,
        limits: TemplateLimits,
    ) -> Result<Self, TemplateError> {
        let place = match rendering {
            Rendering::Here => Place::Here(Compiled::new(&sources, limits)?.into()),
            Rendering::Apart(program) => Place::Apart(Apart::new(sources, program, limits)?),
        };
        Ok(ChatTemplate { place })
    }

    /// The prompt's text. Encode it without adding special tokens: the template wrote them.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        match &self.place {
            Place::Here(compiled) => compiled.render(chat),
            Place::Apart(apart) => apart.render(chat),
        }
    }
}

#[cfg(test)]
mod tests;
