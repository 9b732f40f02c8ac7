//! The rows of one step as plain data.
//!
//! The scheduler fills a [`Batch`]; a device reads it. There is no phase flag: a row belongs to a
//! sequence with a query length, decode is length 1 and a prefill chunk is more. All vectors keep
//! their capacity between steps, so filling one allocates nothing after warm-up.
//!
//! Letters: T rows of the step, S sequences, G KV groups, B blocks of a table, R logits rows.

use crate::sampling::{LogitsRow, SlotInit};

/// Stands in `ids` for "the token that the previous step sampled for this sequence's slot".
pub const PENDING_TOKEN: u32 = u32::MAX;

/// Stands in `slots` for a padded row, and in a block table for a block that slid out of a window.
pub const NO_SLOT: u32 = u32::MAX;

/// One step's rows. Enough for a device (or another rank) to run the step.
///
/// Invariants: `query_start[0] == 0`, ascending, `query_start[S] == T`; sequence `s` owns rows
/// `query_start[s]..query_start[s + 1]`, at positions `kv_len[s] - query_len .. kv_len[s]`;
/// every block table entry that a row may read is a valid block of its group.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Batch {
    /// `[T]` token ids; [`PENDING_TOKEN`] takes the slot's last sampled token.
    pub ids: Vec<u32>,
    /// `[T]` positions for rope (one axis for now).
    pub positions: Vec<u32>,
    /// `[S + 1]` first row of each sequence.
    pub query_start: Vec<u32>,
    /// `[S]` tokens in the cache once this step's rows are written.
    pub kv_len: Vec<u32>,
    /// `[S]` stable index of per-sequence device state (last token, penalty counts).
    pub seq_slot: Vec<u32>,
    /// One entry a KV group.
    pub groups: Vec<GroupBatch>,
    /// `[R]` rows whose logits are needed, each with its purpose; ascending by row.
    pub logits: Vec<LogitsRow>,
    /// Slots whose sequence is new (or came back) in this step.
    pub slot_inits: Vec<SlotInit>,
}

/// A step's addresses in one KV group.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct GroupBatch {
    /// `[T]` where each row's K and V go: block × block_size + offset, or [`NO_SLOT`].
    pub slots: Vec<u32>,
    /// `[S, B]` block of each block_size tokens of each sequence, rows of `table_stride`.
    pub block_table: Vec<u32>,
    /// B, the longest table of this step.
    pub table_stride: usize,
}

impl Batch {
    /// An empty batch for `num_groups` KV groups.
    pub fn new(num_groups: usize) -> Self {
        Batch { groups: vec![GroupBatch::default(); num_groups], ..Batch::default() }
    }

    /// Forgets the rows, keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.query_start.clear();
        self.query_start.push(0);
        self.kv_len.clear();
        self.seq_slot.clear();
        self.logits.clear();
        self.slot_inits.clear();
        for group in &mut self.groups {
            group.slots.clear();
            group.block_table.clear();
            group.table_stride = 0;
        }
    }

    /// T, the rows of this step.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// S, the sequences of this step.
    pub fn num_seqs(&self) -> usize {
        self.kv_len.len()
    }

    /// Rows of sequence `seq` in this step.
    pub fn query_len(&self, seq: usize) -> usize {
        (self.query_start[seq + 1] - self.query_start[seq]) as usize
    }
}
