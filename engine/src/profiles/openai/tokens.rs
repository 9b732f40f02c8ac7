//! `/tokenize` and `/detokenize`, as vLLM has them: text or a conversation to ids, and back.

use hyper::StatusCode;
use pagoda_http::reply::{Reply, json};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::instance::{Conversation, Intake};
use crate::http::route::Call;
use crate::profiles::openai::answer::note_ignored;
use crate::profiles::openai::messages;
use crate::profiles::openai::values::{boolean, missing, string, template_kwargs, token_ids};

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// A body of few fields, without the nulls; remembers which names were asked for.
struct Small<'a> {
    body: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Small<'a> {
    fn new(body: &'a Map<String, Value>) -> Self {
        Small { body, known: Vec::new() }
    }

    fn find(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.body.get(name).filter(|value| !value.is_null())
    }

    fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.find(name).map(|value| boolean(name, value)).transpose()
    }

    fn model(&mut self) -> Result<Option<String>, ApiError> {
        self.find("model").map(|value| string("model", value, 256)).transpose()
    }

    fn ignored(&self) -> Vec<String> {
        let unknown = |name: &&String| !self.known.contains(&name.as_str());
        self.body.keys().filter(unknown).cloned().collect()
    }
}

/// Ids of `prompt`, or of `messages` after the model's template.
pub async fn tokenize(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut small = Small::new(&body);
    let instance = context.model(small.model()?.as_deref())?;
    let (prompt, chat) = (small.find("prompt"), small.find("messages"));
    let add_special = small.flag("add_special_tokens")?;
    let with_text = small.flag("return_token_strs")?.unwrap_or(false);
    let continue_final_message = small.flag("continue_final_message")?.unwrap_or(false);
    let generation_prompt = small.flag("add_generation_prompt")?;
    let kwargs = small.find("chat_template_kwargs");
    // Whoever asks how long a text is may ask about one that is too long.
    let intake = |add_special| Intake { add_special, must_fit: false, room: body.room() };
    let tokens = match (prompt, chat) {
        (Some(_), Some(_)) => {
            let message = "Invalid 'prompt': give either 'prompt' or 'messages', not both.";
            return Err(ApiError::invalid("prompt", "invalid_value", message.into()));
        }
        (Some(prompt), None) => {
            let text = string("prompt", prompt, usize::MAX)?;
            instance.tokenize(text, intake(add_special.unwrap_or(true))).await?
        }
        (None, Some(value)) => {
            let messages_max = context.limits.messages_max;
            let conversation = Conversation {
                messages: messages::parse("messages", value, messages_max)?.messages,
                add_generation_prompt: generation_prompt.unwrap_or(!continue_final_message),
                continue_final_message,
                template_kwargs: match kwargs {
                    Some(value) => template_kwargs("chat_template_kwargs", value)?,
                    None => Map::new(),
                },
            };
            instance.render(conversation, intake(add_special.unwrap_or(false))).await?
        }
        (None, None) => return Err(missing("prompt")),
    };
    let text = |id: &u32| instance.tokenizer().token(*id).unwrap_or_default();
    let tokenized = Tokenized {
        count: tokens.len(),
        max_model_len: instance.engine.info().max_model_len,
        token_strs: with_text.then(|| tokens.iter().map(text).collect()),
        tokens,
    };
    let mut reply = json(StatusCode::OK, &tokenized);
    note_ignored(&mut reply, &small.ignored(), &context.metrics);
    Ok(reply)
}

/// Text of `tokens`.
pub async fn detokenize(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut small = Small::new(&body);
    let instance = context.model(small.model()?.as_deref())?;
    let tokens = small.find("tokens").ok_or_else(|| missing("tokens"))?;
    let ids = token_ids("tokens", tokens, usize::MAX)?;
    let prompt = instance.detokenize(ids, body.room()).await?;
    let mut reply = json(StatusCode::OK, &Detokenized { prompt });
    note_ignored(&mut reply, &small.ignored(), &context.metrics);
    Ok(reply)
}
