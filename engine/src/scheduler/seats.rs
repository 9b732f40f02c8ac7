//! Seats in the batch: sequences arrive, start, give their blocks back, and leave.
//!
//! Every way out of the running sequences goes through [`Scheduler::vacate`]: it ends the
//! sequence's run, so whatever launched steps still bring for it is out of date.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use pagoda_kernels::sampling::SlotInit;

use super::Scheduler;
use super::waiting::{Candidate, Waiting};
use crate::request::{FinishReason, StepError};
use crate::sequence::{SeqId, Sequence, SequenceGroup};

impl Scheduler {
    /// Whether another request finds room.
    pub fn has_room(&self) -> bool {
        self.sequences.has_room()
    }

    /// Whether there is no request.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Takes a request in. Its first choice gets in line; the others follow once the prompt is in
    /// the cache.
    pub fn admit(&mut self, mut group: Box<SequenceGroup>) {
        for sequence in &mut group.sequences {
            sequence.arrival = self.next_arrival;
        }
        self.next_arrival += 1;
        let (tenant, priority) = (group.tenant.id.clone(), group.priority);
        let cost = group.sequences[0].queued_tokens;
        let arrival = group.sequences[0].arrival;
        let id = SeqId { group: self.sequences.insert(group), choice: 0 };
        self.waiting.join(&tenant, Waiting { id, priority, arrival, cost });
    }

    /// The other choices of a request whose prompt is in the cache get in line.
    pub(crate) fn admit_choices(&mut self, index: u32) {
        let Some(group) = self.sequences.group(index) else { return };
        for (choice, sequence) in (0..).zip(&group.sequences).skip(1) {
            let id = SeqId { group: index, choice };
            let (priority, arrival) = (group.priority, sequence.arrival);
            self.waiting.join(&group.tenant.id, Waiting { id, priority, arrival, cost: 1 });
        }
    }

    /// Seats the candidate, whose prefix was taken over.
    pub(super) fn start(&mut self, candidate: Candidate) {
        let id = candidate.waiting.id;
        let Some(slot) = self.free_slots.pop() else { return };
        self.waiting.start(candidate);
        let stats = &self.shared.stats;
        let Some(group) = self.sequences.group_mut(id.group) else { return };
        let sequence = &mut group.sequences[id.choice as usize];
        group.places.give_back(stats, 1, u64::from(sequence.queued_tokens));
        sequence.queued_tokens = 0;
        sequence.passed_over = 0;
        sequence.slot = slot;
        sequence.slot_is_set = false;
        sequence.run = Some(self.next_run);
        self.next_run += 1;
        if sequence.cached_tokens.is_none() {
            sequence.cached_tokens = Some(sequence.computed);
            // The other choices take over what the first has just computed: that is no hit.
            if id.choice == 0 {
                let prompt = sequence.prompt.len() as u64;
                stats.prefix_query_tokens.fetch_add(prompt, Relaxed);
                stats.prefix_hit_tokens.fetch_add(u64::from(sequence.computed), Relaxed);
                stats.prompt_tokens.fetch_add(prompt, Relaxed);
                let now = Instant::now();
                stats.queue_time.record(now.saturating_duration_since(group.submitted_at));
                group.sink.scheduled(now);
            }
        }
        let arrival = group.sequences[id.choice as usize].arrival;
        let age = |&other: &SeqId| (self.sequences[other].arrival, other.choice);
        let seat = self.running.partition_point(|other| age(other) < (arrival, id.choice));
        self.running.insert(seat, id);
    }

    /// Who gives its blocks back when the sequence in `seat` finds none: whoever loses least of
    /// those that are not in the step yet. Never the oldest.
    pub(super) fn victim_from(&self, seat: usize) -> usize {
        let first = seat.max(1);
        assert!(first < self.running.len(), "the oldest sequence fits alone");
        let loss = |&seat: &usize| {
            let id = self.running[seat];
            let sequence = &self.sequences[id];
            let shared = self.kv.shared_tokens(&sequence.tables);
            (sequence.computed.saturating_sub(shared), Reverse(seat))
        };
        (first..self.running.len()).min_by_key(loss).unwrap_or(first)
    }

    /// Takes the blocks of the sequence in `seat` back; it waits to be recomputed, which its full
    /// blocks in the prefix cache may spare it.
    pub(super) fn preempt(&mut self, seat: usize) {
        let id = self.running[seat];
        self.vacate(id);
        let Some(group) = self.sequences.group_mut(id.group) else { return };
        let sequence = &mut group.sequences[id.choice as usize];
        sequence.queued_tokens = sequence.known();
        let arrival = sequence.arrival;
        group.places.requeue(&self.shared.stats, 1, u64::from(sequence.queued_tokens));
        self.shared.stats.preemptions.fetch_add(1, Relaxed);
        // It paid when it started: that it must go again is not its tenant's doing.
        let waiting = Waiting { id, priority: group.priority, arrival, cost: 0 };
        self.waiting.rejoin(&group.tenant.id, waiting);
    }

    /// A choice ended, running or waiting: tells its reader and gives everything back.
    pub(crate) fn finish(&mut self, id: SeqId, reason: FinishReason) {
        self.depart(id);
        let stats = &self.shared.stats;
        match reason {
            FinishReason::Length => stats.finished_length.fetch_add(1, Relaxed),
            FinishReason::Eos | FinishReason::StopToken(_) | FinishReason::Stopped => {
                stats.finished_stop.fetch_add(1, Relaxed)
            }
        };
        let Some(group) = self.sequences.group_mut(id.group) else { return };
        let sequence = &mut group.sequences[id.choice as usize];
        sequence.finished = Some(reason);
        group.sink.finished(id.choice, reason);
        group.num_unfinished -= 1;
        if group.num_unfinished == 0 {
            self.ended.extend(self.sequences.remove(id.group));
        }
    }

    /// Ends requests whose reader is gone, running or waiting, and choices of which a reader wants no
    /// more and which wait to be recomputed: those that run end where their token arrives.
    pub fn cancel_abandoned(&mut self) {
        for index in self.sequences.indexes() {
            let Some(group) = self.sequences.group(index) else { continue };
            if group.sink.is_abandoned() {
                self.shared.stats.cancelled.fetch_add(1, Relaxed);
                let group = self.withdraw(index);
                self.ended.extend(group);
                continue;
            }
            for choice in 0..group.sequences.len() as u32 {
                let id = SeqId { group: index, choice };
                if self.waits_in_vain(id) {
                    self.mark_dirty(index);
                    self.finish(id, FinishReason::Stopped);
                }
            }
        }
    }

    /// Whether a choice was preempted and its reader wants no more of it.
    fn waits_in_vain(&self, id: SeqId) -> bool {
        let Some(group) = self.sequences.group(id.group) else { return false };
        let sequence = &group.sequences[id.choice as usize];
        let waits = sequence.run.is_none() && sequence.finished.is_none();
        waits && !sequence.output.is_empty() && group.sink.is_stopped(id.choice)
    }

    /// Ends all requests with an error event.
    pub fn fail_all(&mut self, error: &StepError) {
        for index in self.sequences.indexes() {
            if let Some(group) = self.withdraw(index) {
                let SequenceGroup { sink, .. } = *group;
                sink.failed(error.clone());
            }
        }
    }

    /// Takes a request out, wherever its choices are.
    fn withdraw(&mut self, index: u32) -> Option<Box<SequenceGroup>> {
        let num_choices = self.sequences.group(index)?.sequences.len() as u32;
        for choice in 0..num_choices {
            let id = SeqId { group: index, choice };
            if self.sequences[id].finished.is_none() {
                self.depart(id);
            }
        }
        self.sequences.remove(index)
    }

    /// Takes an unfinished choice from its seat or from the line, and settles what it owes.
    fn depart(&mut self, id: SeqId) {
        let was_running = self.sequences[id].run.is_some();
        self.vacate(id);
        let Some(group) = self.sequences.group(id.group) else { return };
        let sequence = &group.sequences[id.choice as usize];
        self.waiting.charge(&group.tenant.id, sequence.output.len() as u32);
        if !was_running {
            group.places.give_back(&self.shared.stats, 1, u64::from(sequence.queued_tokens));
        }
        // The other choices join only once the prompt is in the cache.
        if id.choice == 0 || group.started {
            self.waiting.leave(&group.tenant.id, id, !was_running);
        }
    }

    /// Ends a running sequence's run and takes its blocks and slot back.
    fn vacate(&mut self, id: SeqId) {
        let sequence = &mut self.sequences[id];
        if sequence.run.take().is_none() {
            return;
        }
        self.publish(id);
        let sequence = &mut self.sequences[id];
        self.kv.release(&mut sequence.tables);
        sequence.computed = 0;
        sequence.published = 0;
        sequence.pending = 0;
        sequence.verifying = false;
        sequence.looked_up = None;
        self.free_slots.push(sequence.slot);
        self.running.retain(|&other| other != id);
    }

    /// Marks that the reader of a group has something new to read.
    pub(crate) fn mark_dirty(&mut self, index: u32) {
        if let Some(group) = self.sequences.group_mut(index)
            && !std::mem::replace(&mut group.dirty, true)
        {
            self.to_wake.push(index);
        }
    }

    /// Wakes readers that have something new to read.
    pub fn wake_readers(&mut self) {
        for index in self.to_wake.drain(..) {
            if let Some(group) = self.sequences.group_mut(index)
                && std::mem::take(&mut group.dirty)
            {
                group.sink.wake();
            }
        }
    }

    /// A request that ended and is to be dropped; dropping it wakes its reader.
    pub fn pop_ended(&mut self) -> Option<Box<SequenceGroup>> {
        self.ended.pop()
    }

    /// Sequences with a seat.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Hashes the full blocks of `id` whose tokens are known, and makes those findable that launched
    /// steps compute; the last one, full or not, once the prompt is through and when the sequence's run
    /// has ended. After a launch, so that the device works meanwhile.
    pub(crate) fn publish(&mut self, id: SeqId) {
        let shareable = self.rows_shareable(&self.sequences[id]);
        let Sequence { prompt, output, chain, tables, computed, published, run, .. } =
            &mut self.sequences[id];
        let token = |index: usize| match prompt.get(index) {
            Some(&token) => token,
            None => output[index - prompt.len()],
        };
        let known = prompt.len() + output.len();
        chain.extend(&self.shared.hasher, known, token);
        let shareable = shareable.min(known as u32).min(*computed);
        let through = prompt.len() as u32;
        let is_through = *published < through && shareable >= through;
        let full = shareable - shareable % self.kv.block_size();
        let end = if is_through || run.is_none() { shareable } else { full };
        if end > *published {
            self.kv.publish(tables, chain, *published..end, token);
            *published = end;
        }
    }

    /// Rows of the sequence from its start that it may give to others and take from them: where
    /// decode differs from prefill, those of its prompt.
    pub(super) fn rows_shareable(&self, sequence: &Sequence) -> u32 {
        if self.decode_equals_prefill { u32::MAX } else { sequence.prompt.len() as u32 }
    }

    /// Returns the token buffers that travelled with a step to the sequence `id`, running or not.
    /// Gives them back if it has left.
    pub(crate) fn take_back(&mut self, id: SeqId, init: SlotInit) -> Option<SlotInit> {
        let sequences = self.sequences.group_mut(id.group).map(|group| &mut group.sequences);
        let owner = sequences.and_then(|sequences| sequences.get_mut(id.choice as usize));
        // Another request may have taken the number; its parameters lie elsewhere.
        let Some(owner) = owner.filter(|owner| Arc::ptr_eq(&owner.sampler, &init.params)) else {
            return Some(init);
        };
        if init.params.needs_token_counts() {
            owner.count_buffers = Some((init.prompt, init.output));
        }
        None
    }

    /// Compares all bookkeeping with what the sequences hold: for simulations.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.kv.check_integrity(self.sequences.tables())?;
        let seats = self.running.len() + self.free_slots.len();
        if seats != self.shared.info.max_num_seqs as usize {
            return Err(format!("{seats} slots are known"));
        }
        let mut last = None;
        for &id in &self.running {
            let sequence = &self.sequences[id];
            let age = (sequence.arrival, id.choice);
            if sequence.run.is_none() || last.is_some_and(|last| last >= age) {
                return Err(format!("{id:?} has a seat out of turn"));
            }
            last = Some(age);
            let reach = sequence.known() + sequence.pending;
            let block_size = self.kv.block_size();
            let covered = sequence
                .tables
                .iter()
                .all(|table| table.len() as u32 >= sequence.computed.div_ceil(block_size));
            if (sequence.computed > reach && !sequence.verifying) || !covered {
                return Err(format!("{id:?} computed {} of {reach}", sequence.computed));
            }
        }
        Ok(())
    }
}
