//! Fills the next step: running sequences first, then those who wait.

use std::sync::atomic::Ordering::Relaxed;

use pagoda_kernels::batch::Batch;

use super::Scheduler;
use super::cost::StepSize;
use super::record::{Entry, StepRecord};
use super::rows::push_rows;
use super::waiting::Candidate;
use crate::kv::key::BlockKey;
use crate::kv::prefix_cache::Rows;
use crate::model::info::InstanceInfo;
use crate::sequence::{LookUp, SeqId, Sequence};

/// What one step, or one sequence of it, may still bring.
#[derive(Clone, Copy, Debug)]
struct Room {
    rows: u32,
    logits: u32,
    /// Sequences that will bring a row each after this one.
    behind: u32,
}

/// What became of a running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It has rows in the step.
    Joined,
    /// It has nothing to compute now, or found no room.
    Rests,
    /// It has rows to compute and no block for the first of them.
    NoBlocks,
}

/// What a look at a candidate found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It can start with so many cached blocks.
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
    /// Fills `batch` and `record` with the next step. Empty if nothing can run.
    pub fn schedule(&mut self, batch: &mut Batch, record: &mut StepRecord) {
        batch.clear();
        record.clear();
        // Before anybody looks for blocks: one sequence's are not taken while another still holds
        // some that it cannot read any more.
        self.slide_windows();
        let mut room = Room::left(&self.shared.info, batch);
        let mut preempted = false;
        let mut seat = 0;
        while seat < self.running.len() {
            // Every sequence behind this one is left at least one row.
            let behind = (self.running.len() - seat - 1) as u32;
            match self.join(self.running[seat], room.before(behind), batch, record) {
                Outcome::Joined => {
                    room = Room::left(&self.shared.info, batch);
                    seat += 1;
                }
                Outcome::Rests => seat += 1,
                Outcome::NoBlocks => {
                    preempted = true;
                    self.preempt(self.victim_from(seat));
                }
            }
        }
        if !preempted && !self.waiting.is_empty() {
            self.start_waiting(room, batch, record);
        }
    }

    /// Adds a running sequence's rows to the step.
    fn join(
        &mut self,
        id: SeqId,
        room: Room,
        batch: &mut Batch,
        record: &mut StepRecord,
    ) -> Outcome {
        let sequence = &self.sequences[id];
        let rows = self.rows_for(sequence, room, record.size);
        if rows == 0 {
            return Outcome::Rests;
        }
        let run = sequence.run.unwrap_or_default();
        self.propose_drafts(id, rows, room);
        let sequence = &mut self.sequences[id];
        let num_drafts = self.draft_buffer.len() as u32;
        let fit = self.kv.rows_that_fit(&sequence.tables, sequence.computed, rows + num_drafts);
        if fit == 0 {
            return Outcome::NoBlocks;
        }
        let rows = rows.min(fit);
        self.draft_buffer.truncate((fit - rows) as usize);
        let num_drafts = self.draft_buffer.len() as u32;
        let base = sequence.computed;
        let end = base + rows;
        self.kv.grow(&mut sequence.tables, end + num_drafts);
        let samples = sequence.samples_at(end);
        let first_logits = batch.logits.len() as u32;
        let mut entry =
            Entry { id, run, base, rows, num_drafts, samples, first_logits, num_logits: 0 };
        let block_size = self.kv.block_size();
        if !sequence.slot_is_set {
            record.inits.push(id);
        }
        entry.num_logits = push_rows(batch, sequence, &entry, &self.draft_buffer, block_size);
        sequence.computed = end + num_drafts;
        sequence.verifying = num_drafts > 0;
        sequence.pending += u32::from(samples && num_drafts == 0);
        record.size += StepSize::chunk(base, rows + num_drafts);
        record.entries.push(entry);
        Outcome::Joined
    }

    /// Rows that the sequence may bring: wanted, within the step's room and time.
    fn rows_for(&self, sequence: &Sequence, room: Room, size: StepSize) -> u32 {
        let mut rows = sequence.wanted_rows().min(room.rows);
        if sequence.computed < sequence.num_prompt_rows() {
            rows = rows.min(room.logits);
        } else if room.logits == 0 {
            return 0;
        }
        match self.shared.settings.max_step {
            Some(limit) if rows > 1 => {
                let size = StepSize { rows: size.rows + f64::from(room.behind), ..size };
                self.cost.rows_within(limit.as_secs_f64(), size, sequence.computed, rows)
            }
            _ => rows,
        }
    }

    /// Asks for drafts if the sequence has one row, of a token that is known.
    fn propose_drafts(&mut self, id: SeqId, rows: u32, room: Room) {
        self.draft_buffer.clear();
        let Some(source) = &mut self.drafts else { return };
        let sequence = &self.sequences[id];
        if sequence.pending > 0 || sequence.computed + 1 != sequence.known() {
            return;
        }
        let left = sequence.stop.max_tokens.saturating_sub(sequence.output.len() as u32 + 1);
        let max = left.min(room.rows.saturating_sub(rows)).min(room.logits.saturating_sub(1));
        if max > 0 && sequence.wanted_rows() == 1 {
            source.draft(sequence, max as usize, &mut self.draft_buffer);
            self.draft_buffer.truncate(max as usize);
        }
    }

    /// Gives back the blocks that no row of a running sequence can read any more. One whose drafts
    /// are being verified may yet go back.
    fn slide_windows(&mut self) {
        for &id in &self.running {
            let sequence = &mut self.sequences[id];
            if !sequence.verifying {
                self.kv.slide_out(&mut sequence.tables, sequence.computed);
            }
        }
    }

    /// Gives seats and rows to those who wait, best first, as far as there is room. One may start
    /// even when the time is spent: else a limit that bare decode exceeds would let nobody in until
    /// all that run have ended. While there is not one block to spare, nobody is looked at.
    fn start_waiting(&mut self, mut room: Room, batch: &mut Batch, record: &mut StepRecord) {
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
                    self.take_prefix(id, matched);
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
        let stats = &self.shared.stats;
        stats.prefix_lookups.fetch_add(1, Relaxed);
        let keys = self.usable_keys(id);
        let matched = self.kv.match_prefix(keys);
        let mut running = self.running.iter().copied();
        let coming = running.find(|&other| self.computes_next(other, keys, matched));
        let found = match coming {
            Some(_) => Found::Coming,
            None if self.fits(id, matched) => Found::Prefix(matched),
            None => Found::NoBlocks,
        };
        stats.prefix_waits.fetch_add(u64::from(coming.is_some()), Relaxed);
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

    /// Keys of the blocks that the sequence may take over.
    fn usable_keys(&self, id: SeqId) -> &[BlockKey] {
        let sequence = &self.sequences[id];
        let usable = sequence.rows_cacheable() / self.kv.block_size();
        &sequence.chain.keys()[..usable as usize]
    }

    /// Whether `other` runs and is about to compute the block after the first `matched` of `keys`:
    /// then it is worth waiting for it.
    fn computes_next(&self, other: SeqId, keys: &[BlockKey], matched: usize) -> bool {
        let (Some(next), Some(other)) = (keys.get(matched), self.sequences.find(other)) else {
            return false;
        };
        self.shared.settings.prefix_cache
            && other.run.is_some()
            && other.published as usize <= matched
            && other.chain.keys().get(matched) == Some(next)
    }

    /// Takes over the first `matched` blocks of the candidate's prefix.
    fn take_prefix(&mut self, id: SeqId, matched: usize) {
        let sequence = &mut self.sequences[id];
        self.kv.attach(&mut sequence.tables, sequence.chain.keys(), matched);
        sequence.computed = matched as u32 * self.kv.block_size();
        sequence.published = matched as u32;
    }

    /// Whether the candidate's known tokens find blocks beside those to spare, if it takes over
    /// `matched` blocks. Alone it always starts.
    fn fits(&self, id: SeqId, matched: usize) -> bool {
        let rows = self.rows_to_come(id);
        let keys = self.sequences[id].chain.keys();
        self.running.is_empty() || self.kv.fits(keys, matched, rows, self.spares())
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

impl Room {
    /// What `batch` leaves of the device's limits.
    fn left(info: &InstanceInfo, batch: &Batch) -> Room {
        Room {
            rows: info.max_num_batched_tokens.saturating_sub(batch.num_tokens() as u32),
            logits: info.max_logits_rows.saturating_sub(batch.logits.len() as u32),
            behind: 0,
        }
    }

    /// What a sequence may take when `behind` others are to have a row each.
    fn before(self, behind: u32) -> Room {
        Room {
            rows: self.rows.saturating_sub(behind).max(self.rows.min(1)),
            logits: self.logits.saturating_sub(behind).max(self.logits.min(1)),
            behind,
        }
    }
}
