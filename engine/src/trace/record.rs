//! What is written down of a request, and the spans that this becomes: the request, and below it
//! the queue, the prefill and the decode of each prompt.
//!
//! Names are OpenTelemetry's for HTTP and for generative models, and those that vLLM gives what
//! these lack. Texts of a client are never among the values, but for its request id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::span::{Kind, Span, Value};
use super::{Begun, Trace, random_id};

/// What a prompt asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Which of the request's prompts it is.
    pub prompt_idx: u32,
    /// OpenTelemetry's name of the operation.
    pub operation: &'static str,
    /// The served name of the model.
    pub model: String,
    /// Choices.
    pub n: u32,
    /// Tokens of a choice at most.
    pub max_tokens: u32,
    /// How it samples.
    pub temperature: f32,
    /// Share of the probability to keep.
    pub top_p: f32,
    /// The client's seed, as it was sent.
    pub seed: Option<i64>,
}

/// What became of a prompt.
#[derive(Clone, Debug)]
pub struct Answered {
    pub(super) asked: Asked,
    pub(super) submitted_at: Instant,
    pub(super) scheduled_at: Option<Instant>,
    pub(super) first_token_at: Option<Instant>,
    pub(super) ended_at: Instant,
    pub(super) prompt_tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) output_tokens: u32,
    /// Of each choice that has ended.
    pub(super) finish_reasons: BTreeMap<u32, &'static str>,
    pub(super) failed: bool,
}

/// Writes down what becomes of a prompt, and hands it to its trace when dropped.
#[derive(Debug)]
pub struct Recorder {
    trace: Trace,
    answered: Option<Answered>,
}

impl Recorder {
    /// A prompt was submitted. `None` where nothing is recorded.
    pub fn begin(trace: &Trace, asked: impl FnOnce() -> Asked) -> Option<Box<Self>> {
        trace.is_recorded().then(|| Box::new(Self::of(trace, asked())))
    }

    pub(super) fn of(trace: &Trace, asked: Asked) -> Self {
        Recorder { trace: trace.clone(), answered: Some(Answered::submitted(asked)) }
    }

    /// It took part in a step for the first time.
    pub fn scheduled(&mut self, at: Option<Instant>) {
        self.change(|answered| answered.scheduled_at = answered.scheduled_at.or(at));
    }

    /// The prompt is in the cache, part of it since before.
    pub fn started(&mut self, prompt_tokens: u32, cached_tokens: u32) {
        self.change(|answered| {
            (answered.prompt_tokens, answered.cached_tokens) = (prompt_tokens, cached_tokens);
        });
    }

    /// A token has come.
    pub fn token(&mut self, now: Instant) {
        self.change(|answered| {
            answered.first_token_at.get_or_insert(now);
            answered.output_tokens += 1;
        });
    }

    /// A choice has ended.
    pub fn finished(&mut self, choice: u32, reason: &'static str) {
        self.change(|answered| {
            answered.finish_reasons.insert(choice, reason);
        });
    }

    /// The engine failed.
    pub fn failed(&mut self) {
        self.change(|answered| answered.failed = true);
    }

    fn change(&mut self, change: impl FnOnce(&mut Answered)) {
        if let Some(answered) = &mut self.answered {
            change(answered);
            answered.ended_at = Instant::now();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(mut answered) = self.answered.take() {
            // Who left before all choices had ended left now.
            if answered.finish_reasons.len() < answered.asked.n as usize {
                answered.ended_at = Instant::now();
            }
            self.trace.add(answered);
        }
    }
}

/// How a request ended, as HTTP tells it.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its method; `None` if it is none that we know.
    pub method: Option<&'static str>,
    /// Pattern of its route, if it has one.
    pub route: Option<&'static str>,
    /// Status of the answer; `None` if the client left before there was one.
    pub status: Option<u16>,
    /// Whether the whole answer was handed to the socket.
    pub complete: bool,
}

impl Ended<'_> {
    /// What went wrong, for `error.type` and in words.
    fn error(&self, answered: &[Answered]) -> Option<(String, &'static str)> {
        if answered.iter().any(|one| one.failed) {
            return Some(("engine_failed".into(), "the engine failed"));
        }
        match self.status {
            // The client's own mistakes are no error of a server's span.
            Some(status) if status >= 500 => {
                Some((status.to_string(), "the request was not served"))
            }
            Some(_) if self.complete => None,
            _ => Some(("cancelled".into(), "the client left before the end of the answer")),
        }
    }
}

/// The spans of a request that is over.
pub(super) fn spans_of(begun: &Begun, mut answered: Vec<Answered>, ended: &Ended<'_>) -> Vec<Span> {
    let now = Instant::now();
    // They come in the order in which they ended.
    answered.sort_by_key(|one| one.asked.prompt_idx);
    let mut attributes: Attributes = vec![
        ("http.request.method", ended.method.unwrap_or("_OTHER").into()),
        ("gen_ai.request.id", ended.id.into()),
    ];
    if let Some(route) = ended.route {
        attributes.push(("http.route", route.into()));
    }
    if let Some(status) = ended.status {
        attributes.push(("http.response.status_code", u32::from(status).into()));
    }
    if let Some(first) = answered.first() {
        asked_attributes(&first.asked, &mut attributes);
        usage_attributes(&answered, &mut attributes);
        latency_attributes(first, now - begun.clock.began, &mut attributes);
    }
    let error = ended.error(&answered);
    if let Some((kind, _)) = &error {
        attributes.push(("error.type", kind.as_str().into()));
    }
    let request = Span {
        trace_id: begun.id.as_str().into(),
        span_id: begun.span_id,
        parent_id: begun.parent_id,
        state: begun.state.as_deref().map(Arc::from),
        kind: Kind::Server,
        name: name_of(&answered, ended),
        began_ns: begun.clock.unix_ns(begun.clock.began),
        ended_ns: begun.clock.unix_ns(now),
        attributes,
        error: error.map(|(_, message)| message),
    };
    let mut spans = Vec::with_capacity(1 + 3 * answered.len());
    for one in &answered {
        push_phases(begun, &request, one, &mut spans);
    }
    spans.push(request);
    spans
}

/// Few names, none of a client's choice.
fn name_of(answered: &[Answered], ended: &Ended<'_>) -> String {
    let method = ended.method.unwrap_or("HTTP");
    match (answered.first(), ended.route) {
        (Some(Answered { asked, .. }), _) => format!("{} {}", asked.operation, asked.model),
        (None, Some(route)) => format!("{method} {route}"),
        (None, None) => method.into(),
    }
}

type Attributes = Vec<(&'static str, Value)>;

fn asked_attributes(asked: &Asked, to: &mut Attributes) {
    to.extend([
        ("gen_ai.operation.name", asked.operation.into()),
        ("gen_ai.provider.name", "pagoda".into()),
        ("gen_ai.request.model", asked.model.as_str().into()),
        ("gen_ai.response.model", asked.model.as_str().into()),
        ("gen_ai.request.max_tokens", asked.max_tokens.into()),
        ("gen_ai.request.temperature", as_written(asked.temperature).into()),
        ("gen_ai.request.top_p", as_written(asked.top_p).into()),
        ("gen_ai.request.choice.count", asked.n.into()),
        ("gen_ai.request.n", asked.n.into()),
    ]);
    if let Some(seed) = asked.seed {
        to.push(("gen_ai.request.seed", Value::Int(seed)));
    }
}

/// The shortest number that means the same: 0.7, where widening would make 0.699999988079071.
fn as_written(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}

fn usage_attributes(answered: &[Answered], to: &mut Attributes) {
    let sum = |count: fn(&Answered) -> u32| -> Value {
        Value::Int(answered.iter().map(|one| i64::from(count(one))).sum())
    };
    let input = sum(|one| one.prompt_tokens);
    let output = sum(|one| one.output_tokens);
    to.extend([
        ("gen_ai.usage.input_tokens", input.clone()),
        ("gen_ai.usage.output_tokens", output.clone()),
        ("gen_ai.usage.cache_read.input_tokens", sum(|one| one.cached_tokens)),
        ("gen_ai.usage.prompt_tokens", input),
        ("gen_ai.usage.completion_tokens", output),
        ("gen_ai.usage.num_sequences", sum(|one| one.asked.n)),
    ]);
    let reasons = answered.iter().flat_map(|one| one.finish_reasons.values()).copied();
    to.push(("gen_ai.response.finish_reasons", Value::Texts(reasons.collect())));
}

/// Seconds, under vLLM's names: of the first prompt, where there are several.
fn latency_attributes(first: &Answered, whole: Duration, to: &mut Attributes) {
    let mut add = |name, duration: Duration| to.push((name, duration.as_secs_f64().into()));
    let Phases { scheduled_at, first_token_at } = first.phases();
    add("gen_ai.latency.e2e", whole);
    let Some(scheduled_at) = scheduled_at else { return };
    add("gen_ai.latency.time_in_queue", scheduled_at - first.submitted_at);
    add("gen_ai.latency.time_in_model_inference", first.ended_at - scheduled_at);
    let Some(first_token_at) = first_token_at else { return };
    add("gen_ai.latency.time_to_first_token", first_token_at - first.submitted_at);
    add("gen_ai.latency.time_in_model_prefill", first_token_at - scheduled_at);
    add("gen_ai.latency.time_in_model_decode", first.ended_at - first_token_at);
}

/// When a prompt's phases began, never before the phase ahead of them.
struct Phases {
    scheduled_at: Option<Instant>,
    first_token_at: Option<Instant>,
}

impl Answered {
    /// A prompt that was submitted just now.
    pub(super) fn submitted(asked: Asked) -> Self {
        let now = Instant::now();
        Answered {
            asked,
            submitted_at: now,
            scheduled_at: None,
            first_token_at: None,
            ended_at: now,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            finish_reasons: BTreeMap::new(),
            failed: false,
        }
    }

    /// The engine thread may take a request in before its submitter writes down that it submitted
    /// it, and a reader sees tokens later than they came: so times are put in order here.
    fn phases(&self) -> Phases {
        let within = |at: Instant, from: Instant| at.clamp(from, self.ended_at.max(from));
        let scheduled_at = self.scheduled_at.map(|at| within(at, self.submitted_at));
        let from = scheduled_at.unwrap_or(self.submitted_at);
        Phases { scheduled_at, first_token_at: self.first_token_at.map(|at| within(at, from)) }
    }
}

fn push_phases(begun: &Begun, request: &Span, one: &Answered, to: &mut Vec<Span>) {
    let Phases { scheduled_at, first_token_at } = one.phases();
    let prompt = ("pagoda.prompt.index", Value::from(one.asked.prompt_idx));
    let mut push = |name: &str, from: Instant, until: Instant, attributes: Attributes| {
        to.push(Span {
            span_id: random_id(),
            parent_id: Some(request.span_id),
            kind: Kind::Internal,
            name: name.into(),
            began_ns: begun.clock.unix_ns(from),
            ended_ns: begun.clock.unix_ns(until),
            attributes,
            error: None,
            trace_id: request.trace_id.clone(),
            state: request.state.clone(),
        });
    };
    let queued_until = scheduled_at.unwrap_or(one.ended_at);
    push("queue", one.submitted_at, queued_until, vec![prompt.clone()]);
    let Some(scheduled_at) = scheduled_at else { return };
    let tokens = vec![
        prompt.clone(),
        ("gen_ai.usage.input_tokens", one.prompt_tokens.into()),
        ("gen_ai.usage.cache_read.input_tokens", one.cached_tokens.into()),
    ];
    push("prefill", scheduled_at, first_token_at.unwrap_or(one.ended_at), tokens);
    let Some(first_token_at) = first_token_at else { return };
    let tokens = vec![prompt, ("gen_ai.usage.output_tokens", one.output_tokens.into())];
    push("decode", first_token_at, one.ended_at, tokens);
}
