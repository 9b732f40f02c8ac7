//! `/v1/chat/completions`: a conversation in, the next message out, whole or as chunks.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Start};
use crate::api::instance::{Conversation, Instance, Intake, Work};
use crate::http::reply::{Reply, json};
use crate::http::route::Call;
use crate::profiles::openai::answer::{
    Collected, CollectedChoice, Head, StopReason, Usage, collect, finish_reason, note_ignored,
    stop_reason,
};
use crate::profiles::openai::completions::truncated;
use crate::profiles::openai::fields::{Operation, parse};
use crate::profiles::openai::logprobs::{self, ChatLogprobs, PromptLogprobs, TokenNames};
use crate::profiles::openai::stream::{self, ChoiceAt, Chunks, Frame};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// Answers a chat request.
pub async fn serve(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut wire = parse(Operation::Chat, &body, &context.limits)?;
    let room = body.room();
    drop(body);
    let messages = wire.finish_chat()?;
    let instance = context.api.instance(wire.model.as_deref())?;
    let conversation = Conversation {
        messages,
        add_generation_prompt: wire.generation_prompt(),
        continue_final_message: wire.continue_final_message,
        template_kwargs: std::mem::take(&mut wire.template_kwargs),
    };
    let intake = Intake {
        add_special: wire.add_special.unwrap_or(false),
        must_fit: wire.truncate.is_none(),
        room,
    };
    let prompt = truncated(&wire, &instance, instance.render(conversation, intake).await?);
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
        let collected = collect(generation, wire.options.n, &context.tally).await?;
        whole(&wire, &instance, collected, prompt_ids)
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
    prompt_token_ids: Option<Vec<u32>>,
) -> Reply {
    let names = TokenNames::of(wire, instance);
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
        usage: collected.usage,
        prompt_logprobs: wire.prompt_logprobs.map(|_| logprobs::prompt(&prompt, names)),
        prompt_token_ids,
    };
    json(StatusCode::OK, &completion)
}

fn chat_logprobs(wire: &Wire, tokens: &[TokenOut], names: TokenNames<'_>) -> Option<ChatLogprobs> {
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

    fn push(&self, choice: ChunkChoice, frame: &mut Frame<'_>) {
        let (choices, usage) = (vec![choice], frame.usage());
        frame.push(&Chunk { head: &self.head, choices, usage, prompt_token_ids: None });
    }
}

impl Chunks for ChatChunks {
    fn started(&mut self, _prompt_idx: usize, frame: &mut Frame<'_>) {
        let delta = || Delta { role: Some("assistant"), content: Some(String::new()) };
        let choices = (0..self.wire.options.n).map(|index| Self::choice(index, delta())).collect();
        let prompt_token_ids = self.prompt_token_ids.take();
        frame.push(&Chunk { head: &self.head, choices, usage: frame.usage(), prompt_token_ids });
    }

    /// The public API has no place for them in a stream.
    fn prompt(&mut self, _prompt_idx: usize, _token: TokenOut) {}

    fn token(&mut self, at: ChoiceAt, token: TokenOut, text: String, frame: &mut Frame<'_>) {
        let names = TokenNames::of(&self.wire, &self.instance);
        let delta = Delta { role: None, content: Some(text) };
        let choice = ChunkChoice {
            token_ids: self.wire.return_token_ids.then(|| vec![token.id]),
            logprobs: chat_logprobs(&self.wire, &[token], names),
            ..Self::choice(at.choice, delta)
        };
        self.push(choice, frame);
    }

    fn ended(&mut self, at: ChoiceAt, text: String, reason: &EndReason, frame: &mut Frame<'_>) {
        let delta = Delta { role: None, content: (!text.is_empty()).then_some(text) };
        let choice = ChunkChoice {
            finish_reason: Some(finish_reason(reason)),
            stop_reason: stop_reason(reason),
            ..Self::choice(at.choice, delta)
        };
        self.push(choice, frame);
    }

    fn usage(&mut self, usage: Usage, frame: &mut Frame<'_>) {
        let (choices, usage) = (Vec::new(), Some(Some(usage)));
        frame.push(&Chunk { head: &self.head, choices, usage, prompt_token_ids: None });
    }
}
