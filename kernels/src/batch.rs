//! The rows of one step as plain data.
//!
//! The scheduler fills a [`Batch`]; a device reads it. There is no phase flag: a row belongs to a
//! sequence with a query length, decode is length 1 and a prefill chunk is more. All vectors keep
//! their capacity between steps, so filling one allocates nothing after warm-up.
//!
//! Letters: T rows of the step, S sequences, G KV groups, R logits rows.

use crate::device::Limits;
use crate::sampling::{LogitsRow, SlotInit};

/// Stands in `ids` for "the token that the previous step sampled for this sequence's slot".
pub const PENDING_TOKEN: u32 = u32::MAX;

/// Stands in `slots` for a padded row, and in a block table for a block that slid out of a window.
pub const NO_SLOT: u32 = u32::MAX;

/// One step's rows. Enough for a device (or another rank) to run the step.
///
/// Invariants: `query_start[0] == 0`, ascending, `query_start[S] == T`; sequence `s` owns rows
/// `query_start[s]..query_start[s + 1]`, at positions `kv_len[s] - query_len .. kv_len[s]`;
/// every block table entry that a row may read is a valid block of its group, and each table covers
/// its sequence's `kv_len`. Blocks are copied before any row is written or read, in no order: none is
/// copied to twice, nor copied from and to.
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
    /// The sequences' tables one after another: the block of each block_size tokens, or [`NO_SLOT`]
    /// where it slid out of a window.
    pub block_table: Vec<u32>,
    /// `[S + 1]` first entry of each sequence's table: tables are as long as they need to be.
    pub table_start: Vec<u32>,
    /// Blocks that first get another's content, at most one a sequence.
    pub copies: Vec<BlockCopy>,
}

/// A whole block of a KV group, all its layers, becomes what another one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub struct BlockCopy {
    /// The block that is read.
    pub from: u32,
    /// The block that is written.
    pub to: u32,
}

impl GroupBatch {
    /// The blocks of sequence `seq`, by position / block_size.
    pub fn table(&self, seq: usize) -> &[u32] {
        &self.block_table[self.table_start[seq] as usize..self.table_start[seq + 1] as usize]
    }

    /// Appends the table of the next sequence.
    pub fn push_table(&mut self, blocks: impl IntoIterator<Item = u32>) {
        self.block_table.extend(blocks);
        self.table_start.push(self.block_table.len() as u32);
    }
}

impl Batch {
    /// An empty batch for `num_groups` KV groups.
    pub fn new(num_groups: usize) -> Self {
        Batch { groups: vec![GroupBatch::default(); num_groups], ..Batch::default() }
    }

    /// An empty batch with room for the largest step within `limits`, so that filling it never
    /// moves it. Untouched room costs address space, not memory; what the machine refuses to
    /// reserve grows when it is needed.
    pub fn with_room(num_groups: usize, limits: &Limits, block_size: usize) -> Self {
        let mut batch = Batch::new(num_groups);
        let Limits { max_tokens, max_seqs, max_logits_rows, max_model_len, .. } = *limits;
        for rows in [&mut batch.ids, &mut batch.positions] {
            reserve(rows, max_tokens);
        }
        for seqs in [&mut batch.query_start, &mut batch.kv_len, &mut batch.seq_slot] {
            reserve(seqs, max_seqs.saturating_add(1));
        }
        reserve(&mut batch.logits, max_logits_rows);
        reserve(&mut batch.slot_inits, max_seqs);
        for group in &mut batch.groups {
            reserve(&mut group.slots, max_tokens);
            reserve(&mut group.table_start, max_seqs.saturating_add(1));
            reserve(&mut group.copies, max_seqs);
            let blocks = max_seqs.saturating_mul(max_model_len.div_ceil(block_size));
            reserve(&mut group.block_table, blocks);
        }
        batch.clear();
        batch
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
            group.table_start.clear();
            group.table_start.push(0);
            group.copies.clear();
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

    /// Whether any block is copied.
    pub fn has_copies(&self) -> bool {
        self.groups.iter().any(|group| !group.copies.is_empty())
    }

    /// Rows of sequence `seq` in this step.
    pub fn query_len(&self, seq: usize) -> usize {
        (self.query_start[seq + 1] - self.query_start[seq]) as usize
    }
}

fn reserve<T>(rows: &mut Vec<T>, room: usize) {
    // A refusal only means that the vector grows later.
    drop(rows.try_reserve_exact(room));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_with_room_takes_the_largest_step_where_it_is() {
        let limits = Limits {
            max_tokens: 20,
            max_seqs: 3,
            max_logits_rows: 7,
            vocab: 1,
            max_model_len: 100,
            max_top: 0,
        };
        let mut batch = Batch::with_room(2, &limits, 16);
        let room = |batch: &Batch| {
            let group = &batch.groups[1];
            let rows = [batch.ids.capacity(), batch.positions.capacity(), group.slots.capacity()];
            let starts = [batch.query_start.capacity(), group.table_start.capacity()];
            (rows, starts, batch.logits.capacity(), group.block_table.capacity())
        };
        assert_eq!(room(&batch), ([20; 3], [4; 2], 7, 21));
        for seq in 0..3 {
            batch.groups[1].push_table((0..7).map(|block| seq * 7 + block));
        }
        assert_eq!(batch.groups[1].table(2), [14, 15, 16, 17, 18, 19, 20]);
        assert_eq!(room(&batch).3, 21);
        batch.clear();
        assert_eq!(batch.groups[1].table_start, [0]);
    }

    #[test]
    fn room_beyond_any_machine_is_not_insisted_on() {
        let (max_tokens, max_seqs) = (1, usize::MAX);
        let limits = Limits {
            max_tokens,
            max_seqs,
            max_logits_rows: 1,
            vocab: 1,
            max_model_len: usize::MAX,
            max_top: 0,
        };
        assert_eq!(Batch::with_room(1, &limits, 16).num_seqs(), 0);
    }
}
