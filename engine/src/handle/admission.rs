//! Checks of a request that depend on the instance, and the building of its sequences.
//!
//! Runs on the submitting thread: everything that a request can need on the engine thread is
//! allocated here, and its prompt's block keys are hashed here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::queue::TenantPlaces;
use super::room::AnswerRoom;
use super::stream::{CHOICES_MAX, EventBounds, EventStream, ITEM_BYTES, event_ring, ring_capacity};
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
    answer_items: usize,
}

/// Bounds of a request that do not come from the model.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Choices.
    pub choices_max: u32,
    /// Items of its ring and its answer together.
    pub answer_items_max: usize,
    /// Sequences of several requests that are admitted together.
    pub sequences_max: u64,
    /// Prompt tokens of several requests that are admitted together.
    pub tokens_max: u64,
}

impl RequestLimits {
    /// After the settings, with a budget of which one request takes at most `answer_items_max`.
    pub fn new(settings: &SchedulerSettings, answer_items_max: usize) -> Self {
        let choices_max = settings.max_choices.min(settings.max_queued_requests).min(CHOICES_MAX);
        RequestLimits {
            choices_max,
            answer_items_max,
            sequences_max: settings.max_queued_requests.into(),
            tokens_max: settings.max_queued_tokens,
        }
    }
}

/// Checks `request`, of whose events an answer of at most `answer_bytes` is made, against the
/// instance. Errors are the client's.
pub fn check(
    info: &InstanceInfo,
    limits: RequestLimits,
    request: Request,
    answer_bytes: u64,
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
    let most_choices = limits.choices_max;
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
    let answer_items = usize::try_from(answer_bytes.div_ceil(ITEM_BYTES as u64)).ok();
    let Some((ring_capacity, answer_items, all)) = ring_capacity(bounds)
        .zip(answer_items)
        .and_then(|(ring, answer)| Some((ring, answer, ring.checked_add(answer)?)))
    else {
        return Err(too_large(usize::MAX, limits));
    };
    if all > limits.answer_items_max {
        return Err(too_large(all, limits));
    }
    Ok(Checked { request, prompt, ring_capacity, answer_items })
}

/// What requests take that are admitted together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Places in the waiting queue.
    pub sequences: u64,
    /// Tokens in the waiting queue.
    pub tokens: u64,
    /// Items of room for their answers.
    pub room_items: usize,
}

/// What all of them take together, if they can ever be admitted so. Errors are the client's.
pub fn demand(all: &[Checked], limits: RequestLimits) -> Result<Demand, SubmitError> {
    let mut demand = Demand::default();
    for one in all {
        demand.sequences += u64::from(one.num_choices());
        demand.tokens += one.num_prompt_tokens();
        demand.room_items = demand.room_items.saturating_add(one.num_room_items());
    }
    let (places, tokens) = (limits.sequences_max, limits.tokens_max);
    if demand.sequences > places {
        let reason = format!(
            "all prompts have {} choices together, at most {places} can be waited for",
            demand.sequences
        );
        return Err(SubmitError::Invalid(reason));
    }
    if all.len() > 1 && demand.tokens > tokens {
        let reason = format!(
            "all prompts have {} tokens together, at most {tokens} can wait",
            demand.tokens
        );
        return Err(SubmitError::Invalid(reason));
    }
    if demand.room_items > limits.answer_items_max {
        return Err(too_large(demand.room_items, limits));
    }
    Ok(demand)
}

fn too_large(items: usize, limits: RequestLimits) -> SubmitError {
    let mib = |items: usize| (items.saturating_mul(ITEM_BYTES) >> 20) as u64;
    SubmitError::AnswerTooLarge { mib: mib(items), mib_max: mib(limits.answer_items_max) }
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

    /// Items of room that it takes: what its ring must hold and what its answer takes beside it.
    pub fn num_room_items(&self) -> usize {
        self.ring_capacity + self.answer_items
    }

    /// Of these, what its answer takes.
    pub fn num_answer_items(&self) -> usize {
        self.answer_items
    }

    /// Allocates all that the engine thread needs for it; `room` is that of its ring, `draining`
    /// says whether the instance was told to end, `places` are those that its tenant holds.
    pub fn build(
        self,
        info: &InstanceInfo,
        hasher: &KeyHasher,
        room: AnswerRoom,
        draining: Arc<AtomicBool>,
        places: Arc<TenantPlaces>,
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
            places,
            priority: request.priority,
            submitted_at: Instant::now(),
        };
        (group, stream)
    }
}
