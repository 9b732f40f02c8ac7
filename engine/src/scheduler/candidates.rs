//! Which of those who wait may start: whose prefix is there, and for whom there are blocks.
//!
//! Called once a step, after the running sequences have their rows. A candidate that cannot start
//! costs a glance a step, until something changed that could let it. Never takes a block from a
//! running sequence.

use std::sync::atomic::Ordering::Relaxed;

use pagoda_kernels::batch::Batch;

use super::Scheduler;
use super::cost::StepSize;
use super::record::StepRecord;
use super::schedule::{Outcome, Room};
use super::waiting::Candidate;
use crate::kv::key::BlockKey;
use crate::kv::prefix_cache::Rows;
use crate::sequence::{LookUp, SeqId, Sequence};

/// What a look at a candidate found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It can start with so many cached blocks, and with the scheduler's tail.
    Prefix(usize),
    /// A running sequence is about to compute the next block of its prefix.
    Coming,
    /// It does not fit.
    NoBlocks,
}

/// Candidates that one step passes over at most.
const MAX_PASSED_OVER: u32 = 256;
/// How often a sequence that waits for blocks lets others go before it; then the queue stands.
const PATIENCE: u32 = 64;

impl Scheduler {
    /// Gives seats and rows to those who wait, best first, as far as there is room. One may start
    /// even when the time is spent: else a limit that bare decode exceeds would let nobody in until
    /// all that run have ended. While there is not one block to spare, nobody is looked at.
    pub(super) fn start_waiting(
        &mut self,
        mut room: Room,
        batch: &mut Batch,
        record: &mut StepRecord,
    ) {
        if self.free_slots.is_empty() {
            return;
        }
        self.count_outstanding();
        self.waiting.begin_step();
        let mut passed_over = 0;
        let mut has_started = false;
        while room.rows > 0
            && room.logits > 0
            && passed_over < MAX_PASSED_OVER
            && !self.free_slots.is_empty()
            && (!has_started || self.has_time(record.size))
            && (self.running.is_empty() || self.kv.has_more_than(self.spares()))
        {
            let Some(candidate) = self.waiting.candidate() else { return };
            let id = candidate.waiting.id;
            match self.look_up(id) {
                Found::Prefix(matched) => {
                    self.take_prefix(id, matched, batch);
                    self.start(candidate);
                    has_started = true;
                    let outcome = self.join(id, room, batch, record);
                    debug_assert_eq!(outcome, Outcome::Joined, "{id:?} fits");
                    room = Room::left(&self.shared.info, batch);
                    let rows = self.rows_to_come(id);
                    let tables = &self.sequences[id].tables;
                    self.kv.add_outstanding(tables, rows, &mut self.outstanding);
                    continue;
                }
                Found::NoBlocks if self.is_impatient(candidate) => return,
                Found::NoBlocks | Found::Coming => {}
            }
            self.waiting.pass_over(candidate);
            passed_over += 1;
        }
    }

    /// Whether the step has time for more; one that is empty always has.
    fn has_time(&self, size: StepSize) -> bool {
        let limit = self.shared.settings.max_step;
        size.rows == 0.0 || limit.is_none_or(|limit| self.cost.predict(size) < limit.as_secs_f64())
    }

    /// Whether a candidate without blocks stops the queue behind it.
    fn is_impatient(&mut self, candidate: Candidate) -> bool {
        let sequence = &mut self.sequences[candidate.waiting.id];
        sequence.passed_over += 1;
        sequence.passed_over > PATIENCE
    }

    /// Looks the candidate's prefix up and whether it fits, unless what was found in an earlier
    /// step still holds.
    fn look_up(&mut self, id: SeqId) -> Found {
        if let Some(found) = self.found_before(id) {
            return found;
        }
        self.shared.stats.prefix_lookups.fetch_add(1, Relaxed);
        let keys = self.usable_keys(id);
        let matched = self.kv.match_prefix(keys);
        let mut running = self.running.iter().copied();
        let coming = running.find(|&other| self.computes_next(other, keys, matched));
        let found = match coming {
            Some(_) => Found::Coming,
            None => self.find_room(id, matched),
        };
        self.shared.stats.prefix_waits.fetch_add(u64::from(coming.is_some()), Relaxed);
        self.sequences[id].looked_up = Some(LookUp { matched: matched as u32, coming });
        found
    }

    /// What the last look-up found, as far as a glance tells that another would find the same: no
    /// more of the prefix is there, and who was to compute the next block still is, or the blocks
    /// are too few whoever else holds the prefix.
    fn found_before(&self, id: SeqId) -> Option<Found> {
        let LookUp { matched, coming } = self.sequences[id].looked_up?;
        let (keys, matched) = (self.usable_keys(id), matched as usize);
        if self.running.is_empty() || self.kv.may_match_more(keys, matched) {
            return None;
        }
        match coming {
            Some(other) if self.computes_next(other, keys, matched) => {
                self.shared.stats.prefix_waits.fetch_add(1, Relaxed);
                Some(Found::Coming)
            }
            None if !self.kv.may_fit(matched, self.rows_to_come(id), self.spares()) => {
                Some(Found::NoBlocks)
            }
            _ => None,
        }
    }

    /// Whether there is room for the candidate behind the first `matched` blocks of its prefix, with a
    /// tail if it can be had.
    fn find_room(&mut self, id: SeqId, matched: usize) -> Found {
        self.match_tail(id, matched);
        let mut fits = self.fits(id, matched);
        if !fits && self.tail.tokens > 0 {
            // The block that lacks may be the one to be copied.
            self.tail.clear();
            fits = self.fits(id, matched);
        }
        if fits { Found::Prefix(matched) } else { Found::NoBlocks }
    }

    /// Looks up how the hit goes on behind `matched` blocks.
    fn match_tail(&mut self, id: SeqId, matched: usize) {
        let (sequence, size) = (&self.sequences[id], self.kv.block_size());
        // [start, end) lies within the block after those that matched
        let start = matched as u32 * size;
        let end = self.usable_rows(sequence).min(start + size);
        self.wanted.clear();
        self.wanted.extend((start..end).map(|index| sequence.token(index as usize)));
        self.kv.match_tail(sequence.chain.parent(matched), &self.wanted, &mut self.tail);
    }

    /// Keys of the blocks that the sequence may take over.
    fn usable_keys(&self, id: SeqId) -> &[BlockKey] {
        let sequence = &self.sequences[id];
        let usable = self.usable_rows(sequence) / self.kv.block_size();
        &sequence.chain.keys()[..usable as usize]
    }

    /// Rows from its start that the sequence need not compute itself.
    fn usable_rows(&self, sequence: &Sequence) -> u32 {
        sequence.rows_cacheable().min(self.rows_shareable(sequence))
    }

    /// Whether `other` runs and is about to compute the block after the first `matched` of `keys`:
    /// then it is worth waiting for it.
    fn computes_next(&self, other: SeqId, keys: &[BlockKey], matched: usize) -> bool {
        let (Some(next), Some(other)) = (keys.get(matched), self.sequences.find(other)) else {
            return false;
        };
        self.shared.settings.prefix_cache
            && other.run.is_some()
            && (other.published / self.kv.block_size()) as usize <= matched
            && (matched as u32 + 1) * self.kv.block_size() <= self.rows_shareable(other)
            && other.chain.keys().get(matched) == Some(next)
    }

    /// Takes over the first `matched` blocks of the candidate's prefix, and a copy of its tail: `batch`
    /// is the step that it joins now.
    fn take_prefix(&mut self, id: SeqId, matched: usize, batch: &mut Batch) {
        let sequence = &mut self.sequences[id];
        self.kv.attach(&mut sequence.tables, sequence.chain.keys(), matched);
        sequence.computed = matched as u32 * self.kv.block_size();
        if self.tail.tokens > 0
            && self.kv.copy_tail(&mut sequence.tables, &self.tail, &mut batch.groups)
        {
            sequence.computed += self.tail.tokens;
        }
        sequence.published = sequence.computed;
    }

    /// Whether the candidate's known tokens find blocks beside those to spare, if it takes over
    /// `matched` blocks and the tail. Alone it always starts.
    fn fits(&self, id: SeqId, matched: usize) -> bool {
        let rows = self.rows_to_come(id);
        let keys = self.sequences[id].chain.keys();
        self.running.is_empty() || self.kv.fits(keys, matched, &self.tail, rows, self.spares())
    }

    /// Free blocks of each group that a candidate must leave: what running sequences still take,
    /// and some for the next tokens of all.
    fn spares(&self) -> impl Iterator<Item = u32> {
        let seats = self.running.len() as u32 + 1;
        self.outstanding.iter().enumerate().map(move |(group, &taken)| {
            taken.saturating_add(seats.min(self.kv.num_blocks(group) / 8))
        })
    }

    fn rows_to_come(&self, id: SeqId) -> Rows {
        // A chunk shrinks to the blocks there are; a block's worth of rows is good progress.
        Rows { len: self.sequences[id].known(), chunk: self.kv.block_size() }
    }

    fn count_outstanding(&mut self) {
        self.outstanding.fill(0);
        for &id in &self.running {
            let rows = self.rows_to_come(id);
            self.kv.add_outstanding(&self.sequences[id].tables, rows, &mut self.outstanding);
        }
    }
}
