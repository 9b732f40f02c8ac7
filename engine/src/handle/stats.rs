//! Numbers of the engine thread for metrics, health and admission.
//!
//! The engine thread writes (submitters what concerns the queue), anyone reads; each number is an
//! atomic of its own, so a reading is not one instant but costs the step loop nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// All numbers: as they are counted ([`LiveStats`]) or as they were read ([`EngineStats`]).
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stats<N, T> {
    /// Sequences with a seat in the batch.
    pub running: N,
    /// Sequences that wait for one.
    pub waiting: N,
    /// Prompt tokens of waiting sequences.
    pub waiting_tokens: N,
    /// KV blocks in use by sequences, all groups.
    pub blocks_used: N,
    /// All KV blocks, all groups.
    pub blocks_total: N,
    /// Free KV blocks that hold prefixes which can be found until they are taken, all groups.
    pub blocks_evictable: N,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_query_tokens: N,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: N,
    /// Times that a sequence let a step pass because another computes its next prefix block.
    pub prefix_waits: N,
    /// Times that a waiting sequence's prefix was looked up in whole.
    pub prefix_lookups: N,
    /// Sequences that gave their blocks back and are recomputed.
    pub preemptions: N,
    /// Outcomes of sequences that ended or were preempted after their step was launched.
    pub discarded: N,
    /// Requests whose reader left before the end.
    pub cancelled: N,
    /// Requests refused because there was no room.
    pub refused: N,
    /// Prompt tokens of requests that started.
    pub prompt_tokens: N,
    /// Tokens generated.
    pub generation_tokens: N,
    /// Rows computed, recomputed ones included.
    pub rows: N,
    /// Draft tokens verified.
    pub draft_tokens: N,
    /// Draft tokens accepted.
    pub draft_tokens_accepted: N,
    /// Choices ended by an end-of-sequence or stop token, or stopped by their reader.
    pub finished_stop: N,
    /// Choices ended by length.
    pub finished_length: N,
    /// Steps finished.
    pub steps: N,
    /// Seconds from submit to the first row, one entry a request.
    pub queue_time: T,
    /// Seconds from launch to finish, one entry a step.
    pub step_time: T,
}

/// The numbers as the engine thread and submitters count them.
pub type LiveStats = Stats<AtomicU64, TimeHistogram>;

/// A reading of all numbers.
pub type EngineStats = Stats<u64, TimeReading>;

impl LiveStats {
    /// Reads all numbers.
    pub fn read(&self) -> EngineStats {
        let read = |number: &AtomicU64| number.load(Relaxed);
        Stats {
            running: read(&self.running),
            waiting: read(&self.waiting),
            waiting_tokens: read(&self.waiting_tokens),
            blocks_used: read(&self.blocks_used),
            blocks_total: read(&self.blocks_total),
            blocks_evictable: read(&self.blocks_evictable),
            prefix_query_tokens: read(&self.prefix_query_tokens),
            prefix_hit_tokens: read(&self.prefix_hit_tokens),
            prefix_waits: read(&self.prefix_waits),
            prefix_lookups: read(&self.prefix_lookups),
            preemptions: read(&self.preemptions),
            discarded: read(&self.discarded),
            cancelled: read(&self.cancelled),
            refused: read(&self.refused),
            prompt_tokens: read(&self.prompt_tokens),
            generation_tokens: read(&self.generation_tokens),
            rows: read(&self.rows),
            draft_tokens: read(&self.draft_tokens),
            draft_tokens_accepted: read(&self.draft_tokens_accepted),
            finished_stop: read(&self.finished_stop),
            finished_length: read(&self.finished_length),
            steps: read(&self.steps),
            queue_time: self.queue_time.read(),
            step_time: self.step_time.read(),
        }
    }
}

/// Upper bounds of the histograms' buckets, in seconds; a last bucket takes the rest.
pub const TIME_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.45, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// A histogram of durations over [`TIME_BUCKETS`].
#[derive(Debug, Default)]
pub struct TimeHistogram {
    counts: [AtomicU64; TIME_BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

/// A reading of a [`TimeHistogram`].
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TimeReading {
    /// Entries of each bucket (not cumulative); the last is beyond all bounds.
    pub counts: [u64; TIME_BUCKETS.len() + 1],
    /// Seconds in all.
    pub sum_s: f64,
}

impl TimeHistogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = TIME_BUCKETS.partition_point(|&bound| bound < seconds);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(micros(duration), Relaxed);
    }

    /// The counts now.
    pub fn read(&self) -> TimeReading {
        TimeReading {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            sum_s: self.sum_us.load(Relaxed) as f64 / 1e6,
        }
    }
}

/// Microseconds, as far as 64 bits count them.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_is_not_below_them() {
        let histogram = TimeHistogram::default();
        for ms in [1, 2, 1_000, 1_000_000] {
            histogram.record(Duration::from_millis(ms));
        }
        let reading = histogram.read();
        assert_eq!(reading.counts[0], 1);
        assert_eq!(reading.counts[1], 1);
        assert_eq!(reading.counts[9], 1);
        assert_eq!(reading.counts[16], 1);
        assert!((reading.sum_s - 1001.003).abs() < 1e-6);
    }
}
