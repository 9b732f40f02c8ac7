//! `/v1/completions`: prompts in, their continuations out, whole or as chunks.

use std::sync::Arc;

use pagoda_http::json_text::JsonText;
use pagoda_http::reply::Reply;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Start};
use crate::api::instance::{Instance, Intake, Work};
use crate::api::room::Room;
use crate::http::route::Call;
use crate::profiles::openai::answer::{
    CollectedChoice, Head, StopReason, Usage, collect_all, finish_reason, note_ignored, stop_reason,
};
use crate::profiles::openai::fields::{Operation, parse};
use crate::profiles::openai::logprobs::{
    Column, TEXT_COLUMNS, TextLogprobs, TokenNames, WrittenColumns,
};
use crate::profiles::openai::prompt_part::{PromptPart, WrittenPart, answer_bytes};
use crate::profiles::openai::prompts::Prompt;
use crate::profiles::openai::stream::{self, ChoiceAt, Chunks, Frame};
use crate::profiles::openai::whole::{Sections, Shape, WholeAnswer};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// Answers a completions request.
pub async fn serve(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut wire = parse(Operation::Completions, &body, &context.limits)?;
    let room = body.room();
    drop(body);
    let prompts = wire.finish_completions(context.limits.choices_max)?;
    let instance = context.model(wire.model.as_deref())?;
    let wire = Arc::new(wire);
    let (mut works, mut parts) = (Vec::new(), Vec::new());
    let mut prompt_ids = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        prompt_ids.push(ids_of(&wire, &instance, prompt, &room).await?);
    }
    for prompt in prompt_ids {
        parts.push(PromptPart::new(&wire, &instance, &prompt, &room).await?);
        works.push(Work {
            id: context.id.clone(),
            tenant: context.caller.tenant.clone(),
            prompt,
            options: wire.options.clone(),
            start: Start::Continuation,
            answer: answer_bytes(&wire),
            trace: context.trace.clone(),
        });
    }
    let generations = instance.generate_all(works)?;
    drop(room);
    let mut reply = if wire.stream {
        let chunks = TextChunks::new(&wire, &instance, parts);
        stream::reply(generations, chunks, &wire, context.tally.clone()).await?
    } else {
        let generations = generations.into_iter().zip(parts).collect();
        let collected = collect_all(generations, &wire, &context.tally).await?;
        let mut shape = TextShape {
            head: Head::new("cmpl", "text_completion", &instance),
            wire: wire.clone(),
            parts: Vec::new(),
            usage: Usage::default(),
        };
        let (mut choices, mut rooms) = (Vec::new(), Vec::new());
        for prompt in collected {
            shape.usage.add(prompt.usage);
            shape.parts.push(prompt.prompt);
            choices.extend(prompt.choices);
            rooms.extend(prompt.room);
        }
        WholeAnswer::new(shape, &wire, &instance, choices, rooms).reply()
    };
    note_ignored(&mut reply, &wire.ignored, &context.metrics);
    Ok(reply)
}

async fn ids_of(
    wire: &Wire,
    instance: &Instance,
    prompt: Prompt,
    room: &Room,
) -> Result<Vec<u32>, ApiError> {
    let intake = Intake {
        add_special: wire.add_special.unwrap_or(true),
        must_fit: wire.truncate.is_none(),
        room: room.clone(),
    };
    let ids = match prompt {
        Prompt::Tokens(ids) => ids,
        Prompt::Text(text) => instance.tokenize(text, intake).await?,
    };
    Ok(truncated(wire, instance, ids))
}

/// The last tokens of a prompt, as many as `truncate_prompt_tokens` says.
pub(super) fn truncated(wire: &Wire, instance: &Instance, mut ids: Vec<u32>) -> Vec<u32> {
    let Some(keep) = wire.truncate else { return ids };
    let room = instance.engine.info().max_model_len;
    let keep =
        keep.unwrap_or_else(|| room.saturating_sub(wire.options.max_tokens.unwrap_or(1).max(1)));
    let drop = ids.len().saturating_sub(keep as usize);
    ids.drain(..drop);
    ids
}

#[derive(Serialize)]
struct Completion<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

impl Choice {
    fn new(index: usize) -> Self {
        Choice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        }
    }
}

/// Adds a choice up to its end reasons: text and log-probabilities of the prompt, and those of
/// `choice` if there is one.
fn begin_choice(
    sections: &mut Sections,
    index: usize,
    part: &WrittenPart,
    columns: Option<&WrittenColumns>,
    choice: Option<&CollectedChoice>,
) {
    sections.text().raw("{\"index\":").value(&index).raw(",\"text\":\"").share(&part.text);
    let own = choice.map_or("", |choice| &choice.text);
    sections.text().inner(own).raw("\",\"logprobs\":");
    let Some(columns) = columns else {
        sections.text().raw("null");
        return;
    };
    sections.begin_at(columns.offset);
    let mut before = "{\"";
    for ((name, column), prompt) in TEXT_COLUMNS.into_iter().zip(&columns.texts) {
        sections.text().raw(before).raw(name).raw("\":[").share(prompt);
        if choice.is_some() {
            sections.rows(column, !prompt.is_empty());
        }
        before = "],\"";
    }
    sections.text().raw("]}");
}

/// The shape of whole answers.
struct TextShape {
    head: Head,
    wire: Arc<Wire>,
    /// One a prompt.
    parts: Vec<WrittenPart>,
    usage: Usage,
}

impl Shape for TextShape {
    fn head(&self) -> &Head {
        &self.head
    }

    fn choice(&self, index: usize, choice: &CollectedChoice) -> Sections {
        let mut sections = Sections::default();
        let Some(part) = self.parts.get(index / self.wire.options.n as usize) else {
            return sections;
        };
        begin_choice(&mut sections, index, part, part.columns.as_ref(), Some(choice));
        let text = sections.text();
        choice.write_end(text);
        if let Some(logprobs) = &part.logprobs {
            text.raw(",\"prompt_logprobs\":[").share(logprobs).raw("]");
        }
        if let Some(ids) = &part.ids {
            text.raw(",\"prompt_token_ids\":[").share(ids).raw("],\"token_ids\":[");
            sections.rows(Column::Id, false);
            sections.text().raw("]");
        }
        sections.text().raw("}");
        sections
    }

    fn close(&self) -> JsonText {
        let mut text = JsonText::default();
        text.raw("],\"usage\":").value(&self.usage).raw("}");
        text
    }
}

/// Chunks of a streamed completion.
struct TextChunks {
    wire: Arc<Wire>,
    instance: Arc<Instance>,
    head: Head,
    prompts: Vec<StreamedPrompt>,
}

/// How far the answer to one prompt is.
struct StreamedPrompt {
    /// What is told of it, until that was sent.
    part: Option<PromptPart>,
    /// Characters before each choice's next token.
    offsets: Vec<usize>,
}

impl TextChunks {
    fn new(wire: &Arc<Wire>, instance: &Arc<Instance>, parts: Vec<PromptPart>) -> Self {
        let offsets = vec![0; wire.options.n as usize];
        let prompt = |part| StreamedPrompt { part: Some(part), offsets: offsets.clone() };
        TextChunks {
            wire: wire.clone(),
            instance: instance.clone(),
            head: Head::new("cmpl", "text_completion", instance),
            prompts: parts.into_iter().map(prompt).collect(),
        }
    }

    /// The prompt as the first chunk of each choice: once its log-probabilities have all come,
    /// which is before the first token or the end.
    fn echo(&mut self, prompt_idx: usize, frame: &mut Frame<'_>) {
        let Some(prompt) = self.prompts.get_mut(prompt_idx) else { return };
        let Some(part) = prompt.part.take() else { return };
        if !(self.wire.echo || self.wire.return_token_ids) {
            return;
        }
        let part = part.finish();
        let columns = part.columns.as_ref().filter(|_| self.wire.echo);
        prompt.offsets.fill(columns.map_or(0, |columns| columns.offset));
        for choice in 0..prompt.offsets.len() {
            let index = prompt_idx * prompt.offsets.len() + choice;
            frame.push_text(echo_chunk(&self.head, index, &part, columns, frame.usage()));
        }
    }

    fn logprobs(&mut self, at: ChoiceAt, token: &TokenOut) -> Option<TextLogprobs> {
        let num_top = self.wire.options.logprobs?;
        let names = TokenNames::of(&self.wire, &self.instance);
        let prompt = self.prompts.get_mut(at.prompt_idx)?;
        let mut one = TextLogprobs::default();
        one.push(token, num_top, names, prompt.offsets.get_mut(at.choice as usize)?);
        Some(one)
    }

    fn index(&self, at: ChoiceAt) -> usize {
        at.prompt_idx * self.wire.options.n as usize + at.choice as usize
    }

    fn push(&self, choice: Choice, frame: &mut Frame<'_>) {
        let (choices, usage) = (vec![choice], frame.usage());
        frame.push(&Completion { head: &self.head, choices, usage });
    }
}

/// A chunk that tells the prompt as the beginning of a choice.
fn echo_chunk(
    head: &Head,
    index: usize,
    part: &WrittenPart,
    columns: Option<&WrittenColumns>,
    usage: Option<Option<Usage>>,
) -> JsonText {
    let mut sections = Sections::default();
    head.open(sections.text());
    begin_choice(&mut sections, index, part, columns, None);
    let mut text = sections.into_text();
    text.raw(",\"finish_reason\":null,\"stop_reason\":null");
    if let Some(ids) = &part.ids {
        text.raw(",\"prompt_token_ids\":[").share(ids).raw("]");
    }
    text.raw("}]");
    if let Some(usage) = usage {
        text.raw(",\"usage\":").value(&usage);
    }
    text.raw("}");
    text
}

impl Chunks for TextChunks {
    /// The echo waits for the prompt's log-probabilities, which come after this.
    fn started(&mut self, _prompt_idx: usize, _frame: &mut Frame<'_>) {}

    fn prompt(&mut self, prompt_idx: usize, token: TokenOut) {
        let prompt = self.prompts.get_mut(prompt_idx);
        if let Some(part) = prompt.and_then(|prompt| prompt.part.as_mut()) {
            part.push(&token);
        }
    }

    fn token(&mut self, at: ChoiceAt, token: TokenOut, text: String, frame: &mut Frame<'_>) {
        self.echo(at.prompt_idx, frame);
        let logprobs = self.logprobs(at, &token);
        let token_ids = self.wire.return_token_ids.then(|| vec![token.id]);
        self.push(Choice { text, logprobs, token_ids, ..Choice::new(self.index(at)) }, frame);
    }

    fn ended(&mut self, at: ChoiceAt, text: String, reason: &EndReason, frame: &mut Frame<'_>) {
        self.echo(at.prompt_idx, frame);
        let choice = Choice {
            text,
            finish_reason: Some(finish_reason(reason)),
            stop_reason: stop_reason(reason),
            ..Choice::new(self.index(at))
        };
        self.push(choice, frame);
    }

    fn usage(&mut self, usage: Usage, frame: &mut Frame<'_>) {
        let (choices, usage) = (Vec::new(), Some(Some(usage)));
        frame.push(&Completion { head: &self.head, choices, usage });
    }
}
