//! The one table of fields: what each name of a request body means to us.
//!
//! Three classes: honoured; accepted, because the value asks for nothing that we lack; refused by
//! name. Every field of the official SDK is here, and vLLM's extensions. A name that is not here
//! is ignored, listed in `X-Pagoda-Ignored` and counted. `null` means absent.

use serde_json::{Map, Value};

use crate::config::Limits;
use crate::profiles::openai::messages;
use crate::profiles::openai::prompts::{self, Prompt};
use crate::profiles::openai::values::{self as read, Read, unsupported};
use crate::profiles::openai::wire::Wire;

/// Which operation a body asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// A field's name, where it exists and what it means.
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// The operation that has it; `None` is both.
    pub only: Option<Operation>,
    /// What it means to us.
    pub class: Class,
}

/// What a field means to us.
pub enum Class {
    /// It changes the answer: read into the wire struct.
    Honoured(fn(&mut Wire, &Source<'_>) -> Read<()>),
    /// No value of it asks for anything that we lack.
    Accepted,
    /// Refused, with this reason, unless the value passes.
    RefusedUnless(fn(&Value) -> bool, &'static str),
}

/// A value with its name and the limits it must keep.
pub struct Source<'a> {
    /// Name of the field.
    pub name: &'static str,
    /// Its value, never null.
    pub value: &'a Value,
    /// Limits of the installation.
    pub limits: &'a Limits,
}

/// Reads a body through the table. Names it does not know are listed in [`Wire::ignored`].
pub fn parse(operation: Operation, body: &Map<String, Value>, limits: &Limits) -> Read<Wire> {
    let mut wire = Wire::default();
    for (name, value) in body {
        let known =
            |field: &&Field| field.name == name && field.only.is_none_or(|only| only == operation);
        let Some(field) = FIELDS.iter().find(known) else {
            wire.ignored.push(name.clone());
            continue;
        };
        if value.is_null() {
            continue;
        }
        match &field.class {
            Class::Honoured(honour) => {
                honour(&mut wire, &Source { name: field.name, value, limits })?;
            }
            Class::Accepted => {}
            Class::RefusedUnless(passes, _) if passes(value) => {}
            Class::RefusedUnless(_, reason) => return Err(unsupported(field.name, reason)),
        }
    }
    Ok(wire)
}

const fn both(name: &'static str, class: Class) -> Field {
    Field { name, only: None, class }
}

const fn chat(name: &'static str, class: Class) -> Field {
    Field { name, only: Some(Operation::Chat), class }
}

const fn completions(name: &'static str, class: Class) -> Field {
    Field { name, only: Some(Operation::Completions), class }
}

use Class::{Accepted, Honoured, RefusedUnless};

/// Reads a value with one of the readers that take a name and a value.
macro_rules! set {
    ($($field:ident).+, $reader:ident $(, $bound:expr)?) => {
        Honoured(|wire, from| {
            wire.$($field).+ = read::$reader(from.name, from.value $(, $bound)?)?.into();
            Ok(())
        })
    };
}

/// The table. Sorted by what a reader looks for: common fields, sampling, operation, extensions.
pub static FIELDS: &[Field] = &[
    both("model", set!(model, string, 256)),
    both("stream", set!(stream, boolean)),
    both("stream_options", Honoured(stream_options)),
    both("max_tokens", set!(max_tokens, count, 0..=u32::MAX)),
    chat("max_completion_tokens", set!(max_completion_tokens, count, 0..=u32::MAX)),
    both(
        "n",
        Honoured(|wire, from| {
            wire.options.n =
                read::count(from.name, from.value, 1..=from.limits.choices_max.min(128))?;
            Ok(())
        }),
    ),
    both(
        "stop",
        Honoured(|wire, from| {
            let (stops_max, bytes_max) = (from.limits.stops_max, from.limits.stop_bytes_max);
            wire.options.stop = read::stop_strings(from.name, from.value, stops_max, bytes_max)?;
            Ok(())
        }),
    ),
    both(
        "seed",
        Honoured(|wire, from| {
            let seed = read::integer(from.name, from.value, i64::MIN..=i64::MAX)?;
            wire.options.seed = Some(seed.cast_unsigned());
            Ok(())
        }),
    ),
    both("temperature", set!(options.temperature, number, 0.0..=2.0)),
    both("top_p", set!(options.top_p, number, 0.0..=1.0)),
    both("frequency_penalty", set!(options.frequency_penalty, number, -2.0..=2.0)),
    both("presence_penalty", set!(options.presence_penalty, number, -2.0..=2.0)),
    both(
        "logit_bias",
        Honoured(|wire, from| {
            let len_max = from.limits.token_list_max;
            wire.options.logit_bias = read::logit_bias(from.name, from.value, len_max)?;
            Ok(())
        }),
    ),
    chat(
        "messages",
        Honoured(|wire, from| {
            let parsed = messages::parse(from.name, from.value, from.limits.messages_max)?;
            wire.messages = Some(parsed.messages);
            wire.ignored.extend(parsed.ignored);
            Ok(())
        }),
    ),
    chat("logprobs", set!(chat_logprobs, boolean)),
    chat("top_logprobs", set!(top_logprobs, count, 0..=1000)),
    completions(
        "prompt",
        Honoured(|wire, from| {
            wire.prompts = Some(prompts::parse(from.name, from.value, from.limits.prompts_max)?);
            Ok(())
        }),
    ),
    completions("echo", set!(echo, boolean)),
    completions("logprobs", set!(options.logprobs, count, 0..=1000)),
    completions("best_of", set!(best_of, count, 1..=128)),
    completions("suffix", RefusedUnless(is_empty_text, "text cannot be inserted before a suffix")),
    // Asked of nobody, or of OpenAI's own platform.
    both("user", Accepted),
    chat("metadata", Accepted),
    chat("safety_identifier", Accepted),
    chat("prompt_cache_key", Accepted),
    chat("prompt_cache_retention", Accepted),
    chat("parallel_tool_calls", Accepted),
    chat("store", RefusedUnless(is_false, "answers are not stored")),
    both("service_tier", RefusedUnless(is_usual_tier, "there is one service tier")),
    chat("prompt_cache_options", RefusedUnless(is_implicit_cache, "caching is automatic")),
    chat("modalities", RefusedUnless(is_text_alone, "only text is generated")),
    chat("response_format", RefusedUnless(is_text_format, "structured output is not supported")),
    chat("tools", RefusedUnless(is_empty_list, "tools are not supported")),
    chat("tool_choice", RefusedUnless(is_no_choice, "tools are not supported")),
    chat("functions", RefusedUnless(is_empty_list, "functions are not supported")),
    chat("function_call", RefusedUnless(is_no_choice, "functions are not supported")),
    chat("reasoning_effort", RefusedUnless(is_no_effort, "the effort cannot be set")),
    chat("verbosity", RefusedUnless(is_medium, "the verbosity cannot be set")),
    chat("audio", RefusedUnless(never, "audio is not generated")),
    chat("moderation", RefusedUnless(never, "there is no moderation")),
    chat("prediction", RefusedUnless(never, "predicted outputs are not supported")),
    chat("web_search_options", RefusedUnless(never, "there is no web search")),
    // vLLM's extensions.
    both(
        "top_k",
        Honoured(|wire, from| {
            let top_k = read::integer(from.name, from.value, -1..=i64::from(u32::MAX))?;
            wire.options.top_k = Some(u32::try_from(top_k).unwrap_or(0));
            Ok(())
        }),
    ),
    both("min_p", set!(options.min_p, number, 0.0..=1.0)),
    both("repetition_penalty", set!(options.repetition_penalty, number, 0.01..=10.0)),
    both("min_tokens", set!(options.min_tokens, count, 0..=u32::MAX)),
    both("ignore_eos", set!(options.ignore_eos, boolean)),
    both(
        "stop_token_ids",
        Honoured(|wire, from| {
            let len_max = from.limits.token_list_max;
            wire.options.stop_token_ids = read::token_ids(from.name, from.value, len_max)?;
            Ok(())
        }),
    ),
    both(
        "allowed_token_ids",
        Honoured(|wire, from| {
            let len_max = from.limits.token_list_max;
            read::array(from.name, from.value, len_max)?;
            wire.options.allowed = read::token_ids(from.name, from.value, len_max)?;
            Ok(())
        }),
    ),
    both("include_stop_str_in_output", set!(options.include_stop, boolean)),
    both("skip_special_tokens", set!(options.skip_special, boolean)),
    both("prompt_logprobs", set!(prompt_logprobs, count, 0..=1000)),
    both(
        "truncate_prompt_tokens",
        Honoured(|wire, from| {
            let keep = read::integer(from.name, from.value, -1..=i64::from(u32::MAX))?;
            wire.truncate = Some(u32::try_from(keep).ok());
            Ok(())
        }),
    ),
    both(
        "cache_salt",
        Honoured(|wire, from| {
            let salt = read::string(from.name, from.value, 256)?;
            if salt.is_empty() {
                return Err(unsupported(from.name, "it must not be empty"));
            }
            wire.options.cache_salt = salt;
            Ok(())
        }),
    ),
    both(
        "priority",
        Honoured(|wire, from| {
            let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
            let priority = read::integer(from.name, from.value, range)?;
            wire.options.priority = i32::try_from(priority).unwrap_or(0);
            Ok(())
        }),
    ),
    both("return_token_ids", set!(return_token_ids, boolean)),
    both("return_tokens_as_token_ids", set!(tokens_as_ids, boolean)),
    both("add_special_tokens", set!(add_special, boolean)),
    chat("add_generation_prompt", set!(add_generation_prompt, boolean)),
    chat("continue_final_message", set!(continue_final_message, boolean)),
    chat(
        "chat_template_kwargs",
        Honoured(|wire, from| {
            wire.template_kwargs = read::template_kwargs(from.name, from.value)?;
            Ok(())
        }),
    ),
    // vLLM's extensions that would change the answer and that we lack.
    both("use_beam_search", RefusedUnless(is_false, "there is no beam search")),
    both("length_penalty", RefusedUnless(is_one, "there is no beam search")),
    both("bad_words", RefusedUnless(is_empty_list, "words cannot be banned; use logit_bias")),
    both("structured_outputs", RefusedUnless(never, "structured output is not supported")),
    both("guided_json", RefusedUnless(never, "structured output is not supported")),
    both("guided_regex", RefusedUnless(never, "structured output is not supported")),
    both("guided_choice", RefusedUnless(never, "structured output is not supported")),
    both("guided_grammar", RefusedUnless(never, "structured output is not supported")),
    completions(
        "response_format",
        RefusedUnless(is_text_format, "structured output is not supported"),
    ),
    completions("prompt_embeds", RefusedUnless(never, "prompts are text or token ids")),
    chat("chat_template", RefusedUnless(never, "a client cannot bring a template")),
    chat("documents", RefusedUnless(is_empty_list, "documents are not supported")),
    chat("echo", RefusedUnless(is_false, "the last message is not repeated")),
];

fn stream_options(wire: &mut Wire, from: &Source<'_>) -> Read<()> {
    wire.has_stream_options = true;
    for (name, value) in read::object(from.name, from.value)? {
        let whole_name = format!("{}.{name}", from.name);
        match name.as_str() {
            _ if value.is_null() => {}
            "include_usage" => wire.include_usage = read::boolean(&whole_name, value)?,
            "continuous_usage_stats" => {
                wire.continuous_usage = read::boolean(&whole_name, value)?;
            }
            // Padding against guesses from sizes: true is refused, since we add none.
            "include_obfuscation" if is_false(value) => {}
            "include_obfuscation" => return Err(unsupported(&whole_name, "nothing is padded")),
            _ => wire.ignored.push(whole_name),
        }
    }
    Ok(())
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_empty_text(value: &Value) -> bool {
    value.as_str() == Some("")
}

fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn is_usual_tier(value: &Value) -> bool {
    matches!(value.as_str(), Some("auto" | "default"))
}

fn is_implicit_cache(value: &Value) -> bool {
    let implicit = |(name, value): (&String, &Value)| {
        value.is_null() || (name == "mode" && value == "implicit")
    };
    value.as_object().is_some_and(|options| options.iter().all(implicit))
}

fn is_text_alone(value: &Value) -> bool {
    let text = |kind: &Value| kind == "text";
    value.as_array().is_some_and(|kinds| kinds.iter().all(text))
}

fn is_text_format(value: &Value) -> bool {
    value.get("type").is_some_and(|kind| kind == "text")
}

fn is_no_choice(value: &Value) -> bool {
    matches!(value.as_str(), Some("none" | "auto"))
}

fn is_no_effort(value: &Value) -> bool {
    value == "none"
}

fn is_medium(value: &Value) -> bool {
    value == "medium"
}

impl Wire {
    /// The prompts of a completions request.
    pub fn take_prompts(&mut self) -> Read<Vec<Prompt>> {
        self.prompts.take().ok_or_else(|| read::missing("prompt"))
    }
}

#[cfg(test)]
mod tests;
