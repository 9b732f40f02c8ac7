//! Checks of a request that depend on the instance, and the building of its sequences.
//!
//! Runs on the submitting thread: everything that a request can need on the engine thread is
//! allocated here, and its prompt's block keys are hashed here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::room::EventRoom;
use super::stream::{CHOICES_MAX, EventBounds, EventStream, event_ring, ring_capacity};
use crate::kv::block_table::BlockTable;
use crate::kv::key::{KeyChain, KeyHasher};
use crate::model::info::InstanceInfo;
use crate::request::{Request, SamplerParams, Segment, SubmitError};
use crate::scheduler::settings::SchedulerSettings;
use crate::sequence::{Sequence, SequenceGroup};

/// A request that the instance can serve.
#[derive(Debug)]
pub struct Checked {
    request: Request,
    prompt: Arc<[u32]>,
    ring_capacity: usize,
}

/// Checks `request` against the instance. Errors are the client's.
pub fn check(
    info: &InstanceInfo,
    settings: &SchedulerSettings,
    request: Request,
) -> Result<Checked, SubmitError> {
    let prompt_len = request.input.iter().map(|Segment::Tokens(tokens)| tokens.len()).sum();
    if prompt_len == 0 {
        return Err(SubmitError::Invalid("the prompt is empty".into()));
    }
    let total = fits_context(info, prompt_len, request.stop.max_tokens)?;
    let prompt = flatten(&request.input);
    if let Some(token) = prompt.iter().find(|&&token| token >= info.vocab) {
        let reason = format!("token id {token} is not below the vocabulary size {}", info.vocab);
        return Err(SubmitError::Invalid(reason));
    }
    let most_choices = settings.max_choices.min(settings.max_queued_requests).min(CHOICES_MAX);
    if request.n == 0 || request.n > most_choices {
        return Err(SubmitError::Invalid(format!("n must be in 1..={most_choices}")));
    }
    let most_top = request.sampler.num_logprobs.max(request.prompt_logprobs).unwrap_or(0);
    if most_top > info.max_logprobs {
        let reason = format!("at most {} log-probabilities can be returned", info.max_logprobs);
        return Err(SubmitError::Invalid(reason));
    }
    fits_cache(info, total)?;
    let bounds = EventBounds {
        num_choices: request.n,
        max_tokens: request.stop.max_tokens,
        top: request.sampler.num_logprobs.unwrap_or(0),
        prompt_rows: request.prompt_logprobs.map_or(0, |_| prompt.len() as u32),
        prompt_top: request.prompt_logprobs.unwrap_or(0),
    };
    match ring_capacity(bounds) {
        Some(ring_capacity) if ring_capacity <= settings.max_event_items => {
            Ok(Checked { request, prompt, ring_capacity })
        }
        _ => Err(SubmitError::Invalid("n × max_tokens × log-probabilities is too large".into())),
    }
}

fn flatten(input: &[Segment]) -> Arc<[u32]> {
    match input {
        [Segment::Tokens(tokens)] => tokens.as_slice().into(),
        segments => segments.iter().flat_map(|Segment::Tokens(tokens)| tokens).copied().collect(),
    }
}

/// Tokens of prompt and output together, within the context.
fn fits_context(info: &InstanceInfo, prompt: usize, max_tokens: u32) -> Result<u32, SubmitError> {
    let max_model_len = info.max_model_len;
    let prompt_tokens = u32::try_from(prompt).unwrap_or(u32::MAX);
    let total = u64::from(prompt_tokens) + u64::from(max_tokens);
    match u32::try_from(total) {
        Ok(total) if total <= max_model_len => Ok(total),
        _ => Err(SubmitError::ContextLength { max_model_len, prompt_tokens, max_tokens }),
    }
}

/// Whether each group has the blocks that a sequence of `total` tokens needs alone, row by row.
fn fits_cache(info: &InstanceInfo, total: u32) -> Result<(), SubmitError> {
    for group in &info.groups {
        let needed = group.kind.blocks_per_seq(total, 1, info.block_size);
        if needed > group.num_blocks {
            return Err(SubmitError::NeverFits { needed, total: group.num_blocks });
        }
    }
    Ok(())
}

impl Checked {
    /// Sequences that it becomes.
    pub fn num_choices(&self) -> u32 {
        self.request.n
    }

    /// Tokens that the waiting queue counts: the prompt once, all choices share it.
    pub fn num_prompt_tokens(&self) -> u64 {
        self.prompt.len() as u64
    }

    /// Items that its ring must hold.
    pub fn num_event_items(&self) -> usize {
        self.ring_capacity
    }

    /// Allocates all that the engine thread needs for it; `room` is that of its events, `draining`
    /// says whether the instance was told to end.
    pub fn build(
        self,
        info: &InstanceInfo,
        hasher: &KeyHasher,
        room: EventRoom,
        draining: Arc<AtomicBool>,
    ) -> (SequenceGroup, EventStream) {
        let Checked { request, prompt, .. } = self;
        let total = prompt.len() + request.stop.max_tokens as usize;
        let num_blocks = total.div_ceil(info.block_size as usize);
        let root = hasher.root(&request.tenant.cache_salt, "");
        let mut chain = KeyChain::new(root, num_blocks);
        chain.extend(hasher, prompt.len(), |index| prompt[index]);
        let stop = Arc::new(request.stop);
        let (sink, stream) = event_ring(room, request.n, draining);
        let sequence = |choice: u32| Sequence {
            prompt: prompt.clone(),
            output: Vec::with_capacity(stop.max_tokens as usize),
            sampler: Arc::new(SamplerParams { choice, ..request.sampler.clone() }),
            stop: stop.clone(),
            prompt_top: request.prompt_logprobs.filter(|_| choice == 0),
            prompt_rows_sent: 0,
            computed: 0,
            pending: 0,
            verifying: false,
            run: None,
            slot: 0,
            slot_is_set: false,
            tables: info.groups.iter().map(|_| BlockTable::with_room(num_blocks)).collect(),
            chain: chain.copy_with_room(num_blocks),
            published: 0,
            cached_tokens: None,
            arrival: 0,
            queued_tokens: if choice == 0 { prompt.len() as u32 } else { 0 },
            passed_over: 0,
            looked_up: None,
            finished: None,
            count_buffers: request.sampler.needs_token_counts().then(|| {
                (Vec::with_capacity(prompt.len()), Vec::with_capacity(stop.max_tokens as usize))
            }),
        };
        let group = SequenceGroup {
            sink,
            sequences: (0..request.n).map(sequence).collect(),
            num_unfinished: request.n,
            started: false,
            dirty: false,
            tenant: request.tenant,
            priority: request.priority,
            submitted_at: Instant::now(),
        };
        (group, stream)
    }
}
