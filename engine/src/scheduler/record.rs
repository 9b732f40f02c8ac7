//! What a launched step will bring, remembered until it is committed.

use std::ops::Range;
use std::time::Instant;

use super::cost::StepSize;
use crate::sequence::SeqId;

/// One launched step. Kept and refilled, so it allocates nothing after warm-up.
#[derive(Debug, Default)]
pub struct StepRecord {
    /// One entry a sequence of the step, in the batch's order.
    pub entries: Vec<Entry>,
    /// Sequences whose slots the step sets, in the order of the batch's `slot_inits`.
    pub inits: Vec<SeqId>,
    /// How large the step is.
    pub size: StepSize,
    /// When it was launched.
    pub launched_at: Option<Instant>,
}

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which sequence.
    pub id: SeqId,
    /// Its stay among the running ones: the result counts only while it lasts.
    pub run: u64,
    /// Position of the first row.
    pub base: u32,
    /// Rows of known or pending tokens.
    pub rows: u32,
    /// Rows of drafts after them.
    pub num_drafts: u32,
    /// Whether the step samples the sequence's next token.
    pub samples: bool,
    /// First of the sequence's logits rows in the step.
    pub first_logits: u32,
    /// Number of the sequence's logits rows.
    pub num_logits: u32,
}

impl Entry {
    /// The sequence's logits rows in the step.
    pub fn logits(&self) -> Range<usize> {
        self.first_logits as usize..(self.first_logits + self.num_logits) as usize
    }

    /// Position after the last row that is not a draft.
    pub fn end(&self) -> u32 {
        self.base + self.rows
    }
}

impl StepRecord {
    /// An empty record with room for `seats` sequences.
    pub fn with_room(seats: usize) -> Self {
        StepRecord {
            entries: Vec::with_capacity(seats),
            inits: Vec::with_capacity(seats),
            ..StepRecord::default()
        }
    }

    /// Forgets the step, keeps the memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.inits.clear();
        self.size = StepSize::default();
        self.launched_at = None;
    }
}
