//! Fills the next step: running sequences first, then those who wait.
//!
//! Every sequence is asked how many rows it wants and given what the step's rows, logits rows, time
//! and blocks allow. Never looks at a waiting sequence itself: see `candidates`.

use pagoda_kernels::batch::Batch;

use super::Scheduler;
use super::cost::StepSize;
use super::record::{Entry, StepRecord};
use super::rows::push_rows;
use crate::model::info::InstanceInfo;
use crate::sequence::{SeqId, Sequence};

/// What one step, or one sequence of it, may still bring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) rows: u32,
    pub(super) logits: u32,
    /// Sequences that will bring a row each after this one.
    behind: u32,
}

/// What became of a running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has rows in the step.
    Joined,
    /// It has nothing to compute now, or found no room.
    Rests,
    /// It has rows to compute and no block for the first of them.
    NoBlocks,
}

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
        self.kv.let_sources_go();
    }

    /// Adds a running sequence's rows to the step.
    pub(super) fn join(
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
        if !self.decode_equals_prefill {
            // The prompt as prefill; after it row by row, also what is computed again.
            let prompt = sequence.prompt.len() as u32;
            rows = rows.min(prompt.saturating_sub(sequence.computed).max(1));
        }
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
}

impl Room {
    /// What `batch` leaves of the device's limits.
    pub(super) fn left(info: &InstanceInfo, batch: &Batch) -> Room {
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
