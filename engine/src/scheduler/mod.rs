//! Who computes what in the next step: the only policy.
//!
//! There is no phase: every sequence moves `computed` towards the tokens it knows. Running
//! sequences come first, oldest first, each with at least one row; what is left of the budget
//! (rows, logits rows, time) goes to chunks of prompts and then to those who wait. A sequence
//! that finds no block makes the one that loses least give its blocks back; never the oldest.
//! Owns all sequences and the KV bookkeeping; knows no device.

use std::sync::Arc;

use crate::handle::Shared;
use crate::kv::prefix_cache::{PrefixCache, Tail};
use crate::sequence::{SeqId, SequenceGroup};

/// Settings of the scheduler and of the waiting queue.
pub mod settings;

/// All sequences, by number.
pub mod sequences;

/// Order of the waiting queue: priority, fairness, age.
pub mod waiting;

/// How long a step takes, learned from those that ran.
pub mod cost;

/// Where drafts of speculative decoding come from.
pub mod draft;

/// What a step will bring, remembered until it is committed.
pub mod record;

/// The rows of a sequence as batch data.
pub mod rows;

/// Fills the next step: running first, then waiting.
pub mod schedule;

/// Which of those who wait may start.
pub mod candidates;

/// Seats: sequences start, give their blocks back, and leave.
pub mod seats;

/// All that the engine thread knows about requests.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sequences: sequences::Sequences,
    pub(crate) kv: PrefixCache,
    pub(crate) cost: cost::CostModel,
    waiting: waiting::WaitingQueue,
    /// Sequences with a seat, oldest arrival first.
    running: Vec<SeqId>,
    free_slots: Vec<u32>,
    drafts: Option<Box<dyn draft::DraftSource>>,
    draft_buffer: Vec<u32>,
    /// What the runner says of itself.
    decode_equals_prefill: bool,
    /// How the prefix hit of the candidate at hand goes on within a block, and the tokens that it wants
    /// from there on.
    tail: Tail,
    wanted: Vec<u32>,
    /// Blocks a group that running sequences still take for tokens they know.
    outstanding: Vec<u32>,
    next_run: u64,
    next_arrival: u64,
    /// Groups whose readers have something new to read.
    to_wake: Vec<u32>,
    /// Groups that ended and wait to be dropped.
    #[expect(clippy::vec_box, reason = "groups are handed to another thread without a copy")]
    ended: Vec<Box<SequenceGroup>>,
}

impl Scheduler {
    /// No sequences, all blocks free. Drafts are rows of prefill: without `decode_equals_prefill`
    /// they could change what is generated, and none are made.
    pub fn new(
        shared: Arc<Shared>,
        drafts: Option<Box<dyn draft::DraftSource>>,
        decode_equals_prefill: bool,
    ) -> Self {
        let seats = shared.info.max_num_seqs;
        // Every group has at least one sequence that runs or holds a place in the queue.
        let groups = shared.settings.max_queued_requests as usize + seats as usize;
        Scheduler {
            sequences: sequences::Sequences::with_room(groups),
            kv: PrefixCache::new(&shared.info, shared.settings.prefix_cache),
            cost: cost::CostModel::default(),
            waiting: waiting::WaitingQueue::default(),
            running: Vec::with_capacity(seats as usize),
            free_slots: (0..seats).rev().collect(),
            drafts: drafts.filter(|_| decode_equals_prefill),
            decode_equals_prefill,
            draft_buffer: Vec::new(),
            tail: Tail::with_room(shared.info.groups.len()),
            wanted: Vec::with_capacity(shared.info.block_size as usize),
            outstanding: vec![0; shared.info.groups.len()],
            next_run: 0,
            next_arrival: 0,
            to_wake: Vec::with_capacity(groups),
            ended: Vec::with_capacity(groups),
            shared,
        }
    }
}
