//! Batches of what data planes did: usage, and the messages of sessions.
//!
//! A data plane numbers its entries, keeps them on disk until they are acknowledged, and sends them
//! in order. The control plane takes each number once: a batch that comes again changes nothing, a
//! gap is refused with the number that it wants.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Entries of one producer, numbered from `first` without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Whose numbers: one journal on one disk.
    pub producer: Uuid,
    /// Number of the first entry, from 1.
    pub first: u64,
    /// At most [`ENTRIES_MAX`].
    pub entries: Vec<Entry>,
}

/// Entries of a batch.
pub const ENTRIES_MAX: usize = 1000;

/// What a data plane tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// One request that used a model.
    Usage(UsageEvent),
    /// Messages that belong to a session.
    Transcript(Transcript),
}

/// One request that used a model. Counts are what was computed, also for a caller who left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageEvent {
    /// Our own id of it (UUIDv7), never a provider's.
    pub id: Uuid,
    /// When the request came, in Unix milliseconds.
    pub started_at_ms: i64,
    /// The profile that served it.
    pub profile: String,
    /// The caller's key.
    pub key: Option<Uuid>,
    /// The caller.
    pub user: Option<Uuid>,
    /// The model, as the caller named it.
    pub model: String,
    /// Who served it, unless we did.
    pub upstream: Option<Uuid>,
    /// Tokens of the prompt,
    pub prompt_tokens: u32,
    /// of which the prefix cache had so many.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Until the first token, in microseconds.
    pub first_token_us: Option<u64>,
    /// Until the end.
    pub duration_us: u64,
    /// Billionths of a dollar, by the prices of the snapshot that admitted it.
    pub cost_nano: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Who counted.
    pub source: Source,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With a whole answer.
    Done,
    /// The caller left.
    Cancelled,
    /// With an error after it was admitted.
    Failed,
}

/// Who counted tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Our engine.
    Engine,
    /// The upstream.
    Provider,
    /// We estimated what the upstream did not say.
    Estimate,
}

/// Messages that belong to a session, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// The session.
    pub session: Uuid,
    /// Who owns it: a session of somebody else takes nothing.
    pub user: Option<Uuid>,
    /// The profile that served it, whose anonymous callers share sessions.
    pub profile: String,
    /// The agent that answered.
    pub agent: Option<Uuid>,
    /// What was said.
    pub messages: Vec<Message>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its id (UUIDv7).
    pub id: Uuid,
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text, or a list of parts as in a request.
    pub content: serde_json::Value,
    /// Tokens, where they were counted.
    pub tokens: Option<u32>,
    /// Whether it is whole.
    pub state: MessageState,
    /// When it was said, in Unix milliseconds.
    pub created_at_ms: i64,
}

/// Whether a message is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// It is.
    Done,
    /// The caller left midway; this is what there was.
    Cancelled,
    /// It failed midway; this is what there was.
    Failed,
}

/// The answer to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchAnswer {
    /// All entries up to this number are stored for good and may be forgotten.
    Stored(u64),
    /// The batch begins behind this number: nothing was stored.
    Wanted(u64),
}
