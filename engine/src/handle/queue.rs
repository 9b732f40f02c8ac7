//! Places in the waiting queue: taken by submitters, given back by the engine thread.
//!
//! Two numbers of [`LiveStats`] are the whole queue as far as handles know it. Never a lock.

use std::sync::atomic::Ordering::Relaxed;

use super::stats::LiveStats;
use crate::scheduler::settings::SchedulerSettings;

impl LiveStats {
    /// Takes a place unless the queue is full. A lone request may be longer than the limit.
    pub(super) fn take_places(
        &self,
        sequences: u64,
        tokens: u64,
        settings: &SchedulerSettings,
    ) -> bool {
        let places = u64::from(settings.max_queued_requests);
        let fits = |now: u64| (now + sequences <= places).then_some(now + sequences);
        if self.waiting.fetch_update(Relaxed, Relaxed, fits).is_err() {
            return false;
        }
        let limit = settings.max_queued_tokens;
        let fits = |now: u64| (now == 0 || now + tokens <= limit).then_some(now + tokens);
        if self.waiting_tokens.fetch_update(Relaxed, Relaxed, fits).is_err() {
            self.waiting.fetch_sub(sequences, Relaxed);
            return false;
        }
        true
    }

    /// Sequences wait again (they were preempted): they keep their right to a place.
    pub fn requeue(&self, sequences: u64, tokens: u64) {
        self.waiting.fetch_add(sequences, Relaxed);
        self.waiting_tokens.fetch_add(tokens, Relaxed);
    }

    /// Sequences left the queue.
    pub fn give_places_back(&self, sequences: u64, tokens: u64) {
        self.waiting.fetch_sub(sequences, Relaxed);
        self.waiting_tokens.fetch_sub(tokens, Relaxed);
    }
}
