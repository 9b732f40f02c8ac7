//! What the answers of both operations share: head, usage, collected choices, ignored names.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::header::{HeaderName, HeaderValue};
use pagoda_http::json_text::JsonText;
use pagoda_http::reply::Reply;
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Generation, Piece};
use crate::api::instance::Instance;
use crate::handle::AnswerRoom;
use crate::http::access::Tally;
use crate::metrics::HttpMetrics;
use crate::profiles::openai::prompt_part::{PromptPart, WrittenPart};
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

use std::sync::atomic::Ordering::Relaxed;

/// Fields at the beginning of every answer and every chunk.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
}

impl Head {
    /// A new answer of `instance`; ids begin with `prefix`.
    pub fn new(prefix: &str, object: &'static str, instance: &Instance) -> Self {
        // Equal numerics promise equal bits, which is what the fingerprint is asked for.
        let numerics = blake3::hash(instance.engine.info().numerics.as_bytes());
        Head {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            object,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            model: instance.name().to_string(),
            system_fingerprint: format!("fp_{}", &numerics.to_hex()[..10]),
        }
    }

    /// Adds the object up to the bracket that opens its choices.
    pub fn open(&self, text: &mut JsonText) {
        let object = serde_json::to_string(self).unwrap_or_default();
        text.raw(object.strip_suffix('}').unwrap_or_default()).raw(",\"choices\":[");
    }
}

/// Tokens that an answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl Usage {
    /// Adds what another prompt of the same request cost.
    pub fn add(&mut self, other: Usage) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
    }

    /// Counts what a piece tells, here and for the log line.
    pub fn count(&mut self, piece: &Piece, tally: &Tally) {
        match piece {
            Piece::Started { prompt_tokens, cached_tokens } => {
                self.prompt_tokens += prompt_tokens;
                self.prompt_tokens_details.cached_tokens += cached_tokens;
                tally.prompt_tokens.fetch_add(*prompt_tokens, Relaxed);
            }
            Piece::Token { .. } => {
                self.completion_tokens += 1;
                tally.output_tokens.fetch_add(1, Relaxed);
            }
            _ => {}
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// One choice, collected.
#[derive(Debug, Default)]
pub struct CollectedChoice {
    /// Its text.
    pub text: String,
    /// Its tokens, if the answer shows them.
    pub tokens: Vec<TokenOut>,
    /// Why it ended; set when it has.
    pub reason: Option<EndReason>,
}

impl CollectedChoice {
    /// Adds the fields that say why it ended, with the comma before them.
    pub fn write_end(&self, text: &mut JsonText) {
        let reason = self.reason.as_ref().unwrap_or(&EndReason::Length);
        text.raw(",\"finish_reason\":").value(finish_reason(reason));
        text.raw(",\"stop_reason\":").value(&stop_reason(reason));
    }
}

/// A generation, collected.
#[derive(Default)]
pub struct Collected {
    /// In order.
    pub choices: Vec<CollectedChoice>,
    /// What is told of the prompt.
    pub prompt: WrittenPart,
    /// What it cost.
    pub usage: Usage,
    /// Room for the answer, to be held until that is gone.
    pub room: Option<AnswerRoom>,
}

/// Waits for the end of all, in the order in which they come. The first that fails ends the others.
pub async fn collect_all(
    generations: Vec<(Generation, PromptPart)>,
    wire: &Wire,
    tally: &Tally,
) -> Result<Vec<Collected>, ApiError> {
    let mut all: Vec<Collected> = Vec::new();
    all.resize_with(generations.len(), Collected::default);
    let numbered = |(prompt_idx, (generation, part))| async move {
        collect(generation, part, wire, tally).await.map(|collected| (prompt_idx, collected))
    };
    let mut pending: FuturesUnordered<_> =
        generations.into_iter().enumerate().map(numbered).collect();
    while let Some(ended) = pending.next().await {
        let (prompt_idx, collected) = ended?;
        all[prompt_idx] = collected;
    }
    Ok(all)
}

/// Waits for the end. Dropping the future drops the generation, which cancels it.
pub async fn collect(
    mut generation: Generation,
    mut part: PromptPart,
    wire: &Wire,
    tally: &Tally,
) -> Result<Collected, ApiError> {
    let mut collected = Collected { room: generation.take_room(), ..Collected::default() };
    let keeps_tokens = wire.shows_tokens();
    collected.choices.resize_with(wire.options.n as usize, CollectedChoice::default);
    while let Some(piece) = generation.next().await {
        // A long backlog shall not hold up others.
        tokio::task::coop::consume_budget().await;
        collected.usage.count(&piece, tally);
        match piece {
            Piece::Started { .. } => {}
            Piece::Prompt { token, .. } => part.push(&token),
            Piece::Token { choice, token, text } => {
                if let Some(choice) = collected.choices.get_mut(choice as usize) {
                    choice.text.push_str(&text);
                    if keeps_tokens {
                        choice.tokens.push(token);
                    }
                }
            }
            Piece::Ended { choice, text, reason } => {
                if let Some(choice) = collected.choices.get_mut(choice as usize) {
                    choice.text.push_str(&text);
                    choice.reason = Some(reason);
                }
            }
            Piece::Failed(error) => return Err(error),
        }
    }
    collected.prompt = part.finish();
    Ok(collected)
}

/// `finish_reason`.
pub fn finish_reason(reason: &EndReason) -> &'static str {
    match reason {
        EndReason::Eos | EndReason::StopToken(_) | EndReason::StopString(_) => "stop",
        EndReason::Length => "length",
    }
}

/// vLLM's `stop_reason`: the stop string or token of the request that ended the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// A token.
    Token(u32),
    /// A string.
    Text(String),
}

/// `stop_reason`; `None` for the model's own end and for length.
pub fn stop_reason(reason: &EndReason) -> Option<StopReason> {
    match reason {
        EndReason::StopToken(token) => Some(StopReason::Token(*token)),
        EndReason::StopString(text) => Some(StopReason::Text(text.clone())),
        EndReason::Eos | EndReason::Length => None,
    }
}

/// Lists the names that nobody read, in a header and a metric. Names are bounded and made plain,
/// since the client chose them.
pub fn note_ignored(reply: &mut Reply, ignored: &[String], metrics: &HttpMetrics) {
    if ignored.is_empty() {
        return;
    }
    metrics.ignored_fields.increment(ignored.len() as u64);
    let plain = |name: &String| -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "_.-[]".contains(c) { c } else { '?' };
        name.chars().take(64).map(safe).collect()
    };
    let mut names: Vec<String> = ignored.iter().take(IGNORED_NAMES_MAX).map(plain).collect();
    if ignored.len() > IGNORED_NAMES_MAX {
        names.push("...".to_string());
    }
    if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
        reply.headers_mut().insert(HeaderName::from_static("x-pagoda-ignored"), value);
    }
}

/// Names in the header; all are counted.
const IGNORED_NAMES_MAX: usize = 32;
