//! `/v1/chat/completions`: a conversation in, the next message out, whole or as chunks.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Piece, Start};
use crate::api::instance::{Conversation, Instance, Work};
use crate::http::reply::{Reply, json};
use crate::http::route::Call;
use crate::profiles::openai::answer::{
    Collected, CollectedChoice, Head, StopReason, Usage, collect, finish_reason, note_ignored,
    stop_reason,
};
use crate::profiles::openai::completions::truncated;
use crate::profiles::openai::fields::{Operation, parse};
use crate::profiles::openai::logprobs::{self, ChatLogprobs, PromptLogprobs, TokenNames};
use crate::profiles::openai::stream::{self, Chunks, Frame};
use crate::profiles::openai::wire::Wire;

/// Answers a chat request.
pub async fn serve(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut wire = parse(Operation::Chat, &body, &context.limits)?;
    drop(body);
    let messages = wire.finish_chat()?;
    let instance = context.api.instance(wire.model.as_deref())?;
    let conversation = Conversation {
        messages,
        add_generation_prompt: wire.generation_prompt(),
        continue_final_message: wire.continue_final_message,
        template_kwargs: std::mem::take(&mut wire.template_kwargs),
        add_special: wire.add_special.unwrap_or(false),
    };
    let prompt = truncated(&wire, &instance, instance.render(conversation).await?);
    let prompt_ids = wire.return_token_ids.then(|| prompt.clone());
    let work = Work {
        id: context.id.clone(),
        tenant: context.caller.tenant.clone(),
        prompt,
        options: wire.options.clone(),
        start: Start::Text,
    };
    let generation = instance.generate(work).map_err(|error| error.of_prompt("messages"))?;
    let mut reply = if wire.stream {
        let chunks = ChatChunks::new(&wire, &instance, prompt_ids);
        stream::reply(vec![generation], chunks, &wire, context.tally.clone()).await?
    } else {
        let mut usage = Usage::default();
        let collected = collect(generation, wire.options.n, &mut usage, &context.tally).await?;
        whole(&wire, &instance, collected, usage, prompt_ids)
    };
    note_ignored(&mut reply, &wire.ignored, &context.metrics);
    Ok(reply)
}

#[derive(Serialize)]
struct ChatCompletion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct AnswerMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

fn whole(
    wire: &Wire,
    instance: &Instance,
    collected: Collected,
    usage: Usage,
    prompt_token_ids: Option<Vec<u32>>,
) -> Reply {
    let names = TokenNames { tokenizer: instance.tokenizer(), as_ids: wire.tokens_as_ids };
    let choice = |(index, choice): (usize, CollectedChoice)| {
        let reason = choice.reason.unwrap_or(EndReason::Length);
        let ids = || choice.tokens.iter().map(|token| token.id).collect();
        Choice {
            index,
            logprobs: chat_logprobs(wire, &choice.tokens, names),
            finish_reason: finish_reason(&reason),
            stop_reason: stop_reason(&reason),
            token_ids: wire.return_token_ids.then(ids),
            message: AnswerMessage { role: "assistant", content: choice.text, refusal: None },
        }
    };
    let prompt = collected.prompt;
    let completion = ChatCompletion {
        head: Head::new("chatcmpl", "chat.completion", instance),
        choices: collected.choices.into_iter().enumerate().map(choice).collect(),
        usage,
        prompt_logprobs: wire.prompt_logprobs.map(|_| logprobs::prompt(&prompt, names)),
        prompt_token_ids,
    };
    json(StatusCode::OK, &completion)
}

fn chat_logprobs(
    wire: &Wire,
    tokens: &[crate::request::TokenOut],
    names: TokenNames<'_>,
) -> Option<ChatLogprobs> {
    let num_top = wire.options.logprobs?;
    Some(logprobs::chat(tokens, num_top, names))
}

/// Chunks of a streamed chat answer.
struct ChatChunks {
    wire: Wire,
    instance: Arc<Instance>,
    head: Head,
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl ChatChunks {
    fn new(wire: &Wire, instance: &Arc<Instance>, prompt_token_ids: Option<Vec<u32>>) -> Self {
        ChatChunks {
            wire: wire.clone(),
            instance: instance.clone(),
            head: Head::new("chatcmpl", "chat.completion.chunk", instance),
            prompt_token_ids,
        }
    }

    fn choice(index: u32, delta: Delta) -> ChunkChoice {
        ChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        }
    }
}

impl Chunks for ChatChunks {
    fn encode(&mut self, _prompt_idx: usize, piece: Piece, frame: &mut Frame<'_>) {
        let (mut choices, mut prompt_token_ids) = (Vec::new(), None);
        match piece {
            Piece::Started { .. } => {
                prompt_token_ids = self.prompt_token_ids.take();
                let delta = || Delta { role: Some("assistant"), content: Some(String::new()) };
                choices.extend((0..self.wire.options.n).map(|index| Self::choice(index, delta())));
            }
            Piece::Token { choice, token, text } => {
                let wants_tokens =
                    self.wire.options.logprobs.is_some() || self.wire.return_token_ids;
                if text.is_empty() && !wants_tokens {
                    return;
                }
                let names = TokenNames {
                    tokenizer: self.instance.tokenizer(),
                    as_ids: self.wire.tokens_as_ids,
                };
                let delta = Delta { role: None, content: Some(text) };
                choices.push(ChunkChoice {
                    token_ids: self.wire.return_token_ids.then(|| vec![token.id]),
                    logprobs: chat_logprobs(&self.wire, &[token], names),
                    ..Self::choice(choice, delta)
                });
            }
            Piece::Ended { choice, text, reason } => {
                let content = (!text.is_empty()).then_some(text);
                choices.push(ChunkChoice {
                    finish_reason: Some(finish_reason(&reason)),
                    stop_reason: stop_reason(&reason),
                    ..Self::choice(choice, Delta { role: None, content })
                });
            }
            Piece::Prompt { .. } | Piece::Failed(_) => return,
        }
        frame.push(&Chunk { head: &self.head, choices, usage: frame.usage(), prompt_token_ids });
    }

    fn encode_usage(&mut self, usage: Usage, frame: &mut Frame<'_>) {
        let (choices, usage) = (Vec::new(), Some(Some(usage)));
        frame.push(&Chunk { head: &self.head, choices, usage, prompt_token_ids: None });
    }
}
