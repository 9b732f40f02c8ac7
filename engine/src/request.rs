//! The border types: [`Request`] goes to the engine thread, [`Event`]s come back.
//!
//! Plain data, serialisable, so that the engine can be another process later. Everything here was
//! checked when the request was parsed; nothing behind the border checks client data again except
//! what depends on the instance (context length, vocabulary), which `submit` does.

use std::sync::Arc;

pub use pagoda_kernels::sampling::SamplerParams;

/// One request: a prompt and `n` continuations of it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// For logs; the client's `X-Request-Id` or ours.
    pub id: Arc<str>,
    /// The prompt as a list of segments.
    pub input: Vec<Segment>,
    /// How each choice samples; `choice` is filled in per choice.
    pub sampler: SamplerParams,
    /// When a choice ends.
    pub stop: StopParams,
    /// Number of choices.
    pub n: u32,
    /// `Some(k)`: log-probabilities of the prompt's tokens with the k most likely alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Who shares a prefix cache and a place in the fair queue with whom.
    pub tenant: Tenant,
    /// Smaller is served first.
    pub priority: i32,
}

/// A piece of the prompt. Embeddings come later.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Segment {
    /// Token ids.
    Tokens(Vec<u32>),
}

/// When a choice ends. Stop strings are found behind the border, on text, by the reader, who then
/// stops the choice or drops the stream.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StopParams {
    /// Tokens to generate at most, at least 0 (0 only with `prompt_logprobs` or echo).
    pub max_tokens: u32,
    /// No end before this many tokens.
    pub min_tokens: u32,
    /// End-of-sequence tokens of the model; empty with `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// The request's own stop tokens.
    pub stop_token_ids: Vec<u32>,
}

/// Who is calling, as far as the scheduler cares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Tenant {
    /// Fairness key: tenants take turns in the waiting queue.
    pub id: Arc<str>,
    /// Mixed into every block key: only equal salts share blocks.
    pub cache_salt: Arc<str>,
}

/// What the engine says about a request, in order.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// The prompt is in the cache. Comes once, before any token.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Of these, found in the prefix cache.
        cached_tokens: u32,
    },
    /// Log-probability of prompt token `index` (from 1; token 0 has none). Before any token.
    Prompt {
        /// Index within the prompt.
        index: u32,
        /// The token's log-probabilities.
        token: TokenOut,
    },
    /// One generated token of a choice.
    Token {
        /// Which choice, `0..n`.
        choice: u32,
        /// The token.
        token: TokenOut,
    },
    /// A choice ended. The stream ends once all have.
    Finished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// The request failed; nothing follows.
    Failed(StepError),
}

/// A token and, if asked for, log-probabilities.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TokenOut {
    /// The token id.
    pub id: u32,
    /// Natural log of its probability; NaN unless asked for.
    pub logprob: f32,
    /// 1 for the most likely token; 0 unless asked for.
    pub rank: u32,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Why a choice ended, as far as tokens tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum FinishReason {
    /// An end-of-sequence token.
    Eos,
    /// One of the request's stop tokens.
    StopToken(u32),
    /// `max_tokens` or the context is full.
    Length,
    /// The reader wanted no more of it.
    Stopped,
}

/// A request that was admitted and then failed: our fault, or the process is going away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum StepError {
    /// The device reported a fault; the process is about to end.
    #[error("the device failed: {0}")]
    Device(String),
    /// The instance is being stopped; another replica may serve the request.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine thread is gone and said nothing: it panicked, or ended before it took the request.
    #[error("the engine has ended without an answer")]
    Ended,
}

/// A request that was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Client: prompt and `max_tokens` exceed the context.
    #[error(
        "maximum context length is {max_model_len} tokens, the request has {prompt_tokens} in the \
         prompt and asks for {max_tokens} more"
    )]
    ContextLength {
        /// Longest sequence the instance serves.
        max_model_len: u32,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens asked for.
        max_tokens: u32,
    },
    /// Client: the request can never fit the KV cache, even alone.
    #[error("the request needs {needed} KV blocks, the cache has {total}")]
    NeverFits {
        /// Blocks needed.
        needed: u32,
        /// Blocks there are.
        total: u32,
    },
    /// Client: the answer could take more memory than one request may, even alone.
    #[error(
        "the answer could take {mib} MiB of memory and at most {mib_max} MiB are served: ask for \
         fewer choices, tokens or log-probabilities"
    )]
    AnswerTooLarge {
        /// What it could take.
        mib: u64,
        /// What one request may take.
        mib_max: u64,
    },
    /// Client: an empty prompt, or a token id that the vocabulary lacks.
    #[error("{0}")]
    Invalid(String),
    /// Capacity: the waiting queue, or the room for answers, is full; retry later.
    #[error("the server is busy: {queued} requests are waiting")]
    Busy {
        /// Requests waiting.
        queued: u32,
        /// Suggested wait.
        retry_after_s: u32,
    },
    /// Capacity: the instance is being stopped; another replica may serve the request.
    #[error("the server is shutting down")]
    Draining,
    /// Us: the engine thread has ended, and nobody asked it to.
    #[error("the engine has stopped")]
    Stopped,
}
