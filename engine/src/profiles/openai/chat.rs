//! `/v1/chat/completions`: a conversation in, the next message out, whole or as chunks.

use std::sync::Arc;

use pagoda_http::json_text::JsonText;
use pagoda_http::reply::Reply;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Start};
use crate::api::instance::{Conversation, Instance, Intake, Work};
use crate::http::route::Call;
use crate::profiles::openai::answer::{
    Collected, CollectedChoice, Head, StopReason, Usage, collect, finish_reason, note_ignored,
    stop_reason,
};
use crate::profiles::openai::completions::truncated;
use crate::profiles::openai::fields::{Operation, parse};
use crate::profiles::openai::logprobs::{self, ChatLogprobs, Column, TokenNames};
use crate::profiles::openai::prompt_part::{PromptPart, WrittenPart, answer_bytes};
use crate::profiles::openai::stream::{self, ChoiceAt, Chunks, Frame};
use crate::profiles::openai::whole::{Sections, Shape, WholeAnswer};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// Answers a chat request.
pub async fn serve(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut wire = parse(Operation::Chat, &body, &context.limits)?;
    let room = body.room();
    drop(body);
    let messages = wire.finish_chat()?;
    let instance = context.model(wire.model.as_deref())?;
    let conversation = Conversation {
        messages,
        add_generation_prompt: wire.generation_prompt(),
        continue_final_message: wire.continue_final_message,
        template_kwargs: std::mem::take(&mut wire.template_kwargs),
    };
    let intake = Intake {
        add_special: wire.add_special.unwrap_or(false),
        must_fit: wire.truncate.is_none(),
        room: room.clone(),
    };
    let wire = Arc::new(wire);
    let prompt = truncated(&wire, &instance, instance.render(conversation, intake).await?);
    let part = PromptPart::new(&wire, &instance, &prompt, &room).await?;
    drop(room);
    let work = Work {
        id: context.id.clone(),
        tenant: context.caller.tenant.clone(),
        prompt,
        options: wire.options.clone(),
        start: Start::Text,
        answer: answer_bytes(&wire),
        trace: context.trace.clone(),
    };
    let generation = instance.generate(work).map_err(|error| error.of_prompt("messages"))?;
    let mut reply = if wire.stream {
        let chunks = ChatChunks::new(&wire, &instance, part.finish());
        stream::reply(vec![generation], chunks, &wire, context.tally.clone()).await?
    } else {
        whole(&wire, &instance, collect(generation, part, &wire, &context.tally).await?)
    };
    note_ignored(&mut reply, &wire.ignored, &context.metrics);
    Ok(reply)
}

fn whole(wire: &Arc<Wire>, instance: &Arc<Instance>, collected: Collected) -> Reply {
    let Collected { choices, prompt, usage, room } = collected;
    let head = Head::new("chatcmpl", "chat.completion", instance);
    let shape = ChatShape { head, wire: wire.clone(), prompt, usage };
    WholeAnswer::new(shape, wire, instance, choices, room.into_iter().collect()).reply()
}

/// The shape of whole answers.
struct ChatShape {
    head: Head,
    wire: Arc<Wire>,
    prompt: WrittenPart,
    usage: Usage,
}

impl Shape for ChatShape {
    fn head(&self) -> &Head {
        &self.head
    }

    fn choice(&self, index: usize, choice: &CollectedChoice) -> Sections {
        let mut sections = Sections::default();
        let text = sections.text();
        text.raw("{\"index\":").value(&index);
        text.raw(",\"message\":{\"role\":\"assistant\",\"content\":").value(&choice.text);
        text.raw(",\"refusal\":null},\"logprobs\":");
        if self.wire.options.logprobs.is_some() {
            text.raw("{\"content\":[");
            sections.rows(Column::Chat, false);
            sections.text().raw("],\"refusal\":null}");
        } else {
            text.raw("null");
        }
        let text = sections.text();
        choice.write_end(text);
        if self.wire.return_token_ids {
            text.raw(",\"token_ids\":[");
            sections.rows(Column::Id, false);
            sections.text().raw("]");
        }
        sections.text().raw("}");
        sections
    }

    fn close(&self) -> JsonText {
        let mut text = JsonText::default();
        text.raw("],\"usage\":").value(&self.usage);
        if let Some(logprobs) = &self.prompt.logprobs {
            text.raw(",\"prompt_logprobs\":[").share(logprobs).raw("]");
        }
        if let Some(ids) = &self.prompt.ids {
            text.raw(",\"prompt_token_ids\":[").share(ids).raw("]");
        }
        text.raw("}");
        text
    }
}

fn chat_logprobs(wire: &Wire, token: &TokenOut, names: TokenNames<'_>) -> Option<ChatLogprobs> {
    let num_top = wire.options.logprobs?;
    Some(logprobs::chat(token, num_top, names))
}

/// Chunks of a streamed chat answer.
struct ChatChunks {
    wire: Arc<Wire>,
    instance: Arc<Instance>,
    head: Head,
    prompt: WrittenPart,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
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
    fn new(wire: &Arc<Wire>, instance: &Arc<Instance>, prompt: WrittenPart) -> Self {
        ChatChunks {
            wire: wire.clone(),
            instance: instance.clone(),
            head: Head::new("chatcmpl", "chat.completion.chunk", instance),
            prompt,
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
        frame.push(&Chunk { head: &self.head, choices, usage });
    }
}

impl Chunks for ChatChunks {
    fn started(&mut self, _prompt_idx: usize, frame: &mut Frame<'_>) {
        let delta = || Delta { role: Some("assistant"), content: Some(String::new()) };
        let choices: Vec<ChunkChoice> =
            (0..self.wire.options.n).map(|index| Self::choice(index, delta())).collect();
        let mut text = JsonText::default();
        self.head.open(&mut text);
        for (index, choice) in choices.iter().enumerate() {
            text.raw(if index == 0 { "" } else { "," }).value(choice);
        }
        text.raw("]");
        if let Some(usage) = frame.usage() {
            text.raw(",\"usage\":").value(&usage);
        }
        if let Some(ids) = self.prompt.ids.take() {
            text.raw(",\"prompt_token_ids\":[").share(&ids).raw("]");
        }
        text.raw("}");
        frame.push_text(text);
    }

    /// The public API has no place for them in a stream.
    fn prompt(&mut self, _prompt_idx: usize, _token: TokenOut) {}

    fn token(&mut self, at: ChoiceAt, token: TokenOut, text: String, frame: &mut Frame<'_>) {
        let names = TokenNames::of(&self.wire, &self.instance);
        let delta = Delta { role: None, content: Some(text) };
        let choice = ChunkChoice {
            token_ids: self.wire.return_token_ids.then(|| vec![token.id]),
            logprobs: chat_logprobs(&self.wire, &token, names),
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
        frame.push(&Chunk { head: &self.head, choices, usage });
    }
}
