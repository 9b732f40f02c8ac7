//! A template compiled and rendered in this process: the dialect of transformers in an interpreter.
//!
//! Instructions, recursion and output are bounded here. What a template builds for itself is not
//! (`a ~ a`, over and over; lists of lists that are compared): those that are not ours are rendered
//! in a process of their own ([`super::apart`]).

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json, json};

use super::sandbox::{BoundedText, Raised, rewrite_generation_blocks};
use super::{Bound, Chat, Content, Message, TemplateError, TemplateLimits, TemplateSources};

/// A model's chat template, compiled.
#[derive(Debug)]
pub(super) struct Compiled {
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

impl Compiled {
    /// Compiles templates, and renders a message of one word: what that is too much for is none.
    pub(super) fn new(
        sources: &TemplateSources,
        limits: TemplateLimits,
    ) -> Result<Self, TemplateError> {
        let TemplateSources { templates, named_tokens } = sources;
        let names: Vec<String> = templates.iter().map(|(name, _)| name.clone()).collect();
        if !names.iter().any(|name| name == "default") && names.len() != 1 {
            let what = format!("none of the templates {names:?} is named \"default\"");
            return Err(TemplateError::Damaged(what));
        }
        let damaged = |error: Error| TemplateError::Damaged(describe(&error));
        let mut env = environment(limits).map_err(damaged)?;
        for (name, source) in templates {
            env.add_template_owned(name.clone(), rewrite_generation_blocks(source))
                .map_err(damaged)?;
        }
        let named_tokens = named_tokens.clone();
        let mut template = Self { env, names, named_tokens, limits, takes: Takes::Text };
        template.takes = template.probe()?;
        Ok(template)
    }

    /// The prompt's text.
    pub(super) fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
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
            crate::text::strftime::strftime(now, format).map_err(|directive| {
                let what = format!("strftime_now does not know {directive}");
                Error::new(ErrorKind::InvalidOperation, what)
            })
        };
        context.insert("strftime_now".into(), Value::from_function(strftime_now));

        let mut out = BoundedText::new(self.limits.output_bytes_max);
        // The interpreter panics on some expressions (`[][::-1]`). It changes nothing but `out`.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let template = self.env.get_template(name)?;
            template.render_captured_to(context, &mut out).map(|_| ())
        }));
        let Ok(outcome) = rendered else {
            return Err(TemplateError::Unfit("the template's interpreter failed".into()));
        };
        match outcome {
            Ok(()) => out.into_string(),
            Err(_) if out.is_full() => Err(TemplateError::TooMuch(Bound::Text)),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                Err(TemplateError::TooMuch(Bound::Instructions))
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
    fn probe(&self) -> Result<Takes, TemplateError> {
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
            let text = match self.render_json(&chat, messages) {
                Err(error @ TemplateError::TooMuch(_)) => return Err(error.at_load()),
                // It may want other messages.
                other => other.unwrap_or_default(),
            };
            Ok(text.contains(PROBE) && !text.contains("'text'") && !text.contains("\"text\""))
        };
        let as_parts = json!([{ "type": "text", "text": PROBE }]);
        Ok(match (writes(json!(PROBE))?, writes(as_parts)?) {
            (true, true) => Takes::Both,
            (false, true) => Takes::Parts,
            (_, false) => Takes::Text,
        })
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
    env.add_filter("tojson", crate::text::tojson::tojson);
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
