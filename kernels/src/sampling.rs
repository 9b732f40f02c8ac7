//! Sampling parameters of a sequence, the logits rows of a step, and what sampling returns.
//!
//! Plain data between the scheduler and the `sample` op. Noise is Philox(seed, choice, output
//! position), so a token depends on nothing but its own logits and these numbers.

use std::sync::Arc;

/// How one sequence samples. Ranges were checked when the request was parsed.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplerParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the k largest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Seed of the noise.
    pub seed: u64,
    /// Which of the request's `n` choices this is.
    pub choice: u32,
    /// Subtracted once for each time a token was generated.
    pub frequency_penalty: f32,
    /// Subtracted once if a token was generated at all.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// `suppressed` tokens are impossible before this many output tokens.
    pub min_tokens: u32,
    /// Tokens that would end the sequence (end-of-sequence and stop ids).
    pub suppressed: Vec<u32>,
    /// Added to logits, ascending by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// If not empty, only these tokens are possible, ascending.
    pub allowed: Vec<u32>,
    /// Log-probabilities to return per token: `None` none, `Some(0)` the chosen token's alone.
    pub num_logprobs: Option<u32>,
}

impl Default for SamplerParams {
    fn default() -> Self {
        SamplerParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            choice: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            min_tokens: 0,
            suppressed: Vec::new(),
            logit_bias: Vec::new(),
            allowed: Vec::new(),
            num_logprobs: None,
        }
    }
}

impl SamplerParams {
    /// Whether the sampler must know which tokens the sequence holds.
    pub fn needs_token_counts(&self) -> bool {
        self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || self.repetition_penalty != 1.0
    }
}

/// A sequence takes a slot: its parameters, and its tokens so far if penalties need them.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct SlotInit {
    /// Index of the per-sequence device state.
    pub slot: u32,
    /// How the sequence samples.
    pub params: Arc<SamplerParams>,
    /// Prompt tokens; empty unless [`SamplerParams::needs_token_counts`].
    pub prompt: Vec<u32>,
    /// Tokens generated before a preemption; empty unless needed.
    pub output: Vec<u32>,
}

/// A row of the step whose logits are needed.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LogitsRow {
    /// Row of the step, `0..T`.
    pub row: u32,
    /// Sequence of the step, `0..S`.
    pub seq: u32,
    /// What the logits are for.
    pub purpose: Purpose,
}

/// What a row's logits are for.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Purpose {
    /// Sample output token number `output_position` (0 is the first generated token).
    Sample {
        /// How many tokens the sequence generated before this one.
        output_position: u32,
    },
    /// The log-probability of the prompt's next token (`target`) and the top `num_top`.
    PromptLogprob {
        /// Token that follows in the prompt.
        target: u32,
        /// How many of the most likely tokens to return.
        num_top: u32,
    },
    /// Sample at `output_position` and compare with `draft` (speculative decoding).
    Verify {
        /// How many tokens the sequence generated before this one.
        output_position: u32,
        /// The drafted token at this position.
        draft: u32,
    },
}

/// What one logits row gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SampledRow {
    /// The sampled token, or the target of a prompt row.
    pub token: u32,
    /// Natural log of its probability under the raw logits (before penalties and temperature).
    /// NaN unless log-probabilities were asked for.
    pub logprob: f32,
    /// 1 for the most likely token; 0 unless log-probabilities were asked for.
    pub rank: u32,
    /// Entries of [`SampleOutput::top`] that belong to this row: start.
    pub top_start: u32,
    /// Entries of [`SampleOutput::top`] that belong to this row: number.
    pub top_len: u32,
}

/// What the `sample` op gives for a step: `[R]` rows, and their top lists one after another.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SampleOutput {
    /// One entry a logits row, in the order of [`crate::batch::Batch::logits`].
    pub rows: Vec<SampledRow>,
    /// `(token, log-probability)`, most likely first within a row; ties by lower token id.
    pub top: Vec<(u32, f32)>,
}
