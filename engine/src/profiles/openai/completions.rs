//! `/v1/completions`: prompts in, their continuations out, whole or as chunks.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Start};
use crate::api::instance::{Instance, Intake, Work};
use crate::api::room::Room;
use crate::http::reply::{Reply, json};
use crate::http::route::Call;
use crate::profiles::openai::answer::{
    Collected, CollectedChoice, Head, StopReason, Usage, collect_all, finish_reason, note_ignored,
    stop_reason,
};
use crate::profiles::openai::fields::{Operation, parse};
use crate::profiles::openai::logprobs::{self, PromptLogprobs, TextLogprobs, TokenNames};
use crate::profiles::openai::prompts::Prompt;
use crate::profiles::openai::stream::{self, ChoiceAt, Chunks, Frame};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// Answers a completions request.
pub async fn serve(call: Call) -> Result<Reply, ApiError> {
    let (context, body) = call.read_object().await?;
    let mut wire = parse(Operation::Completions, &body, &context.limits)?;
    let room = body.room();
    drop(body);
    let prompts = wire.finish_completions(context.limits.choices_max)?;
    let instance = context.api.instance(wire.model.as_deref())?;
    let (mut generations, mut shown) = (Vec::new(), Vec::new());
    let mut prompt_ids = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        prompt_ids.push(ids_of(&wire, &instance, prompt, &room).await?);
    }
    for prompt in prompt_ids {
        shown.push(Shown::of(&wire, &instance, &prompt, &room).await?);
        generations.push(instance.generate(Work {
            id: context.id.clone(),
            tenant: context.caller.tenant.clone(),
            prompt,
            options: wire.options.clone(),
            start: Start::Continuation,
        })?);
    }
    drop(room);
    let mut reply = if wire.stream {
        let chunks = TextChunks::new(&wire, &instance, shown);
        stream::reply(generations, chunks, &wire, context.tally.clone()).await?
    } else {
        let mut answer = WholeAnswer::new(&wire, &instance);
        let collected = collect_all(generations, wire.options.n, &context.tally).await?;
        for (collected, shown) in collected.into_iter().zip(shown) {
            answer.add(collected, shown);
        }
        answer.reply()
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

/// What of the prompt is in the answer.
#[derive(Clone, Default)]
struct Shown {
    /// With `echo`: its text.
    text: String,
    /// With `echo` or `return_token_ids`: its ids.
    ids: Vec<u32>,
}

impl Shown {
    async fn of(
        wire: &Wire,
        instance: &Instance,
        ids: &[u32],
        room: &Room,
    ) -> Result<Self, ApiError> {
        let mut shown = Shown::default();
        if wire.echo {
            shown.text = instance.detokenize(ids.to_vec(), room.clone()).await?;
        }
        if wire.echo || wire.return_token_ids {
            shown.ids = ids.to_vec();
        }
        Ok(shown)
    }
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
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
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
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids: None,
        }
    }
}

/// Log-probabilities of an echoed prompt; `offset` ends after it.
fn echo_logprobs(
    wire: &Wire,
    names: TokenNames<'_>,
    shown: &Shown,
    prompt: &[TokenOut],
    offset: &mut usize,
) -> Option<TextLogprobs> {
    let num_top = wire.options.logprobs?;
    let mut logprobs = TextLogprobs::default();
    if wire.echo {
        // The prompt is shown whole.
        let names = TokenNames { skip_special: false, ..names };
        if let Some(first) = shown.ids.first() {
            logprobs.push_first(*first, names, offset);
        }
        for token in prompt {
            logprobs.push(token, num_top, names, offset);
        }
    }
    Some(logprobs)
}

struct WholeAnswer<'a> {
    wire: &'a Wire,
    instance: &'a Instance,
    choices: Vec<Choice>,
    usage: Usage,
}

impl<'a> WholeAnswer<'a> {
    fn new(wire: &'a Wire, instance: &'a Instance) -> Self {
        WholeAnswer { wire, instance, choices: Vec::new(), usage: Usage::default() }
    }

    fn add(&mut self, collected: Collected, shown: Shown) {
        self.usage.add(collected.usage);
        for choice in collected.choices {
            let choice = self.choice(choice, &collected.prompt, &shown);
            self.choices.push(choice);
        }
    }

    fn choice(&self, choice: CollectedChoice, prompt: &[TokenOut], shown: &Shown) -> Choice {
        let wire = self.wire;
        let names = TokenNames::of(wire, self.instance);
        let reason = choice.reason.unwrap_or(EndReason::Length);
        let mut offset = 0;
        let mut logprobs = echo_logprobs(wire, names, shown, prompt, &mut offset);
        if let (Some(logprobs), Some(num_top)) = (&mut logprobs, wire.options.logprobs) {
            for token in &choice.tokens {
                logprobs.push(token, num_top, names, &mut offset);
            }
        }
        let ids = || choice.tokens.iter().map(|token| token.id).collect();
        Choice {
            text: format!("{}{}", shown.text, choice.text),
            logprobs,
            finish_reason: Some(finish_reason(&reason)),
            stop_reason: stop_reason(&reason),
            prompt_logprobs: wire.prompt_logprobs.map(|_| logprobs::prompt(prompt, names)),
            prompt_token_ids: wire.return_token_ids.then(|| shown.ids.clone()),
            token_ids: wire.return_token_ids.then(ids),
            ..Choice::new(self.choices.len())
        }
    }

    fn reply(self) -> Reply {
        let head = Head::new("cmpl", "text_completion", self.instance);
        let usage = Some(Some(self.usage));
        json(StatusCode::OK, &Completion { head: &head, choices: self.choices, usage })
    }
}

/// Chunks of a streamed completion.
struct TextChunks {
    wire: Wire,
    instance: Arc<Instance>,
    head: Head,
    prompts: Vec<StreamedPrompt>,
}

/// How far the answer to one prompt is.
struct StreamedPrompt {
    shown: Shown,
    /// Log-probabilities of the prompt that have come.
    prompt: Vec<TokenOut>,
    /// Whether the echo was sent.
    echoed: bool,
    /// Characters before each choice's next token.
    offsets: Vec<usize>,
}

impl TextChunks {
    fn new(wire: &Wire, instance: &Arc<Instance>, shown: Vec<Shown>) -> Self {
        let offsets = vec![0; wire.options.n as usize];
        let prompt = |shown| StreamedPrompt {
            shown,
            prompt: Vec::new(),
            echoed: false,
            offsets: offsets.clone(),
        };
        TextChunks {
            wire: wire.clone(),
            instance: instance.clone(),
            head: Head::new("cmpl", "text_completion", instance),
            prompts: shown.into_iter().map(prompt).collect(),
        }
    }

    /// The prompt as the first chunk of each choice: once its log-probabilities have all come,
    /// which is before the first token or the end.
    fn echo(&mut self, prompt_idx: usize, frame: &mut Frame<'_>) {
        let (wire, n) = (&self.wire, self.wire.options.n as usize);
        let Some(prompt) = self.prompts.get_mut(prompt_idx) else { return };
        if std::mem::replace(&mut prompt.echoed, true) || !(wire.echo || wire.return_token_ids) {
            return;
        }
        let names = TokenNames::of(wire, &self.instance);
        let mut choices = Vec::with_capacity(n);
        for (choice, offset) in prompt.offsets.iter_mut().enumerate() {
            let logprobs = echo_logprobs(wire, names, &prompt.shown, &prompt.prompt, offset);
            choices.push(Choice {
                text: prompt.shown.text.clone(),
                logprobs: logprobs.filter(|_| wire.echo),
                prompt_token_ids: wire.return_token_ids.then(|| prompt.shown.ids.clone()),
                ..Choice::new(prompt_idx * n + choice)
            });
        }
        prompt.prompt = Vec::new();
        frame.push(&Completion { head: &self.head, choices, usage: frame.usage() });
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

impl Chunks for TextChunks {
    /// The echo waits for the prompt's log-probabilities, which come after this.
    fn started(&mut self, _prompt_idx: usize, _frame: &mut Frame<'_>) {}

    fn prompt(&mut self, prompt_idx: usize, token: TokenOut) {
        if let Some(prompt) = self.prompts.get_mut(prompt_idx) {
            prompt.prompt.push(token);
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
