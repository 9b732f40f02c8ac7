//! A sequence: one choice of a request, from the waiting queue to its last token.
//!
//! Built whole by the submitting thread, with room for everything it can ever hold, so that the
//! engine thread allocates nothing for it. There is no phase: `wanted_rows` says how many rows are
//! still to be computed, one for a decode, more for a prefill.
//!
//! ```text
//! 0        computed        known       known + pending        prompt + max_tokens
//! |-- in cache --|-- wanted: tokens known --|-- sampled, not yet seen --|
//! ```

use std::sync::Arc;
use std::time::Instant;

use pagoda_kernels::sampling::SamplerParams;

use crate::handle::queue::TenantPlaces;
use crate::handle::stream::EventSink;
use crate::kv::block_table::BlockTable;
use crate::kv::key::KeyChain;
use crate::request::{FinishReason, StopParams, Tenant};

/// One choice of a request.
#[derive(Debug)]
pub struct Sequence {
    /// The prompt, shared by all choices.
    pub prompt: Arc<[u32]>,
    /// Tokens generated so far; room for `max_tokens`.
    pub output: Vec<u32>,
    /// How it samples.
    pub sampler: Arc<SamplerParams>,
    /// When it ends.
    pub stop: Arc<StopParams>,
    /// `Some(k)`: this choice brings the prompt's log-probabilities with k alternatives.
    pub prompt_top: Option<u32>,
    /// Prompt rows whose log-probabilities were sent: the next one wanted is this row.
    pub prompt_rows_sent: u32,
    /// Rows whose K and V a launched step computes: `computed ≤ known + pending`.
    pub computed: u32,
    /// Tokens that launched steps sample and that are not known yet: 0 or 1.
    pub pending: u32,
    /// Rows of drafts that a launched step verifies: until it is committed, the sequence rests.
    pub verifying: bool,
    /// Number of this stay among the running sequences, unique; `None` while waiting or ended.
    pub run: Option<u64>,
    /// Index of the per-sequence device state while running.
    pub slot: u32,
    /// Whether the device knows the parameters of `slot`.
    pub slot_is_set: bool,
    /// One table a KV group.
    pub tables: Vec<BlockTable>,
    /// Keys of full blocks whose tokens are known.
    pub chain: KeyChain,
    /// Rows that came from the prefix cache or were offered to it: `published ≤ computed`.
    pub published: u32,
    /// Tokens found in the prefix cache when it started for the first time.
    pub cached_tokens: Option<u32>,
    /// Order of arrival at the engine thread.
    pub arrival: u64,
    /// Tokens that the waiting queue counts for it.
    pub queued_tokens: u32,
    /// How often younger sequences could take blocks that it waited for.
    pub passed_over: u32,
    /// What was found when it last waited to start.
    pub looked_up: Option<LookUp>,
    /// Why it ended.
    pub finished: Option<FinishReason>,
    /// Buffers for the token lists of a slot, if penalties need them: prompt and output.
    pub count_buffers: Option<(Vec<u32>, Vec<u32>)>,
}

/// What a waiting sequence found in the prefix cache when it could not start.
#[derive(Clone, Copy, Debug)]
pub struct LookUp {
    /// Blocks from its start that it could have taken over.
    pub matched: u32,
    /// Who was about to compute the block after them, if anybody was.
    pub coming: Option<SeqId>,
}

/// All choices of one request and the way back to its reader.
#[derive(Debug)]
pub struct SequenceGroup {
    /// Events go here.
    pub sink: EventSink,
    /// One sequence a choice.
    pub sequences: Vec<Sequence>,
    /// Choices that have not finished.
    pub num_unfinished: u32,
    /// Whether the prompt is in the cache and `Started` was sent. Other choices than the first
    /// wait for it: they share the prompt through the prefix cache.
    pub started: bool,
    /// Whether the reader has something new to read.
    pub dirty: bool,
    /// Who asks.
    pub tenant: Tenant,
    /// Its tenant's places in the waiting queue, where those of its sequences are given back.
    pub places: Arc<TenantPlaces>,
    /// Smaller is served first.
    pub priority: i32,
    /// When it was submitted.
    pub submitted_at: Instant,
}

/// Names a sequence on the engine thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId {
    /// Index of the group.
    pub group: u32,
    /// Which choice.
    pub choice: u32,
}

impl Sequence {
    /// Tokens whose ids are known.
    pub fn known(&self) -> u32 {
        (self.prompt.len() + self.output.len()) as u32
    }

    /// Token at `index`, below [`Sequence::known`].
    pub fn token(&self, index: usize) -> u32 {
        match self.prompt.get(index) {
            Some(&token) => token,
            None => self.output[index - self.prompt.len()],
        }
    }

    /// Rows that could be computed now: tokens known or sampled whose K and V are not in the cache.
    ///
    /// None if the sequence rests (drafts under verification) or has sampled all it may: the last
    /// token's K and V are never needed.
    pub fn wanted_rows(&self) -> u32 {
        if self.verifying {
            return 0;
        }
        let prompt = self.prompt.len() as u32;
        let last = prompt + self.stop.max_tokens.max(1) - 1;
        (self.known() + self.pending).min(last) - self.computed.min(last)
    }

    /// Whether a step that computes rows up to `end` also samples the sequence's next token.
    pub fn samples_at(&self, end: u32) -> bool {
        self.stop.max_tokens > 0 && end == self.known() + self.pending
    }

    /// Why the sequence ends with the token that was just appended, if it does.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        let num_output = self.output.len() as u32;
        if num_output > self.stop.min_tokens
            && let Some(&token) = self.output.last()
        {
            if self.stop.eos_token_ids.contains(&token) {
                return Some(FinishReason::Eos);
            }
            if self.stop.stop_token_ids.contains(&token) {
                return Some(FinishReason::StopToken(token));
            }
        }
        (num_output >= self.stop.max_tokens).then_some(FinishReason::Length)
    }

    /// Rows below this one may come from the prefix cache: the last known token is always
    /// computed, and so is every row whose log-probabilities are still wanted.
    pub fn rows_cacheable(&self) -> u32 {
        let all_but_last = self.known() - 1;
        match self.prompt_top {
            Some(_) => all_but_last.min(self.prompt_rows_sent),
            None => all_but_last,
        }
    }

    /// Rows of the prompt that bring log-probabilities: row i gives those of token i + 1.
    pub fn num_prompt_rows(&self) -> u32 {
        if self.prompt_top.is_some() { self.prompt.len() as u32 - 1 } else { 0 }
    }
}
