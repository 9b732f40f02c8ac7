//! Numbers of the engine thread for metrics, health and admission.
//!
//! The engine thread writes, anyone reads; each number is an atomic of its own, so a reading is
//! not one instant but costs the step loop nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Live numbers, written by the engine thread.
#[derive(Debug, Default)]
pub struct LiveStats {
    /// Sequences with a seat in the batch.
    pub running: AtomicU32,
    /// KV blocks in use by sequences, all groups.
    pub blocks_used: AtomicU64,
    /// KV blocks that sequences could take, all groups.
    pub blocks_total: AtomicU64,
    /// Free KV blocks that hold prefixes which can be found until they are taken, all groups.
    pub blocks_evictable: AtomicU64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_query_tokens: AtomicU64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: AtomicU64,
    /// Times that a sequence let a step pass because another computes its next prefix block.
    pub prefix_waits: AtomicU64,
    /// Times that a waiting sequence's prefix was looked up in whole.
    pub prefix_lookups: AtomicU64,
    /// Sequences that gave their blocks back and will be recomputed.
    pub preemptions: AtomicU64,
    /// Outcomes of sequences that ended or were preempted after their step was launched.
    pub discarded: AtomicU64,
    /// Requests whose reader left before the end.
    pub cancelled: AtomicU64,
    /// Prompt tokens of requests that started.
    pub prompt_tokens: AtomicU64,
    /// Tokens generated.
    pub generation_tokens: AtomicU64,
    /// Rows computed, recomputed ones included.
    pub rows: AtomicU64,
    /// Draft tokens verified.
    pub draft_tokens: AtomicU64,
    /// Draft tokens accepted.
    pub draft_tokens_accepted: AtomicU64,
    /// Choices ended by an end-of-sequence or stop token.
    pub finished_stop: AtomicU64,
    /// Choices ended by length.
    pub finished_length: AtomicU64,
    /// Steps finished.
    pub steps: AtomicU64,
    /// Microseconds from launch to finish of the last step.
    pub last_step_us: AtomicU64,
    /// Seconds from submit to the first row, one entry a request.
    pub queue_time: TimeHistogram,
    /// Seconds from launch to finish, one entry a step.
    pub step_time: TimeHistogram,
    /// The engine thread has ended.
    pub ended: AtomicBool,
    busy: Busy,
}

/// Since when a step has been in progress.
#[derive(Debug)]
struct Busy {
    epoch: Instant,
    /// Microseconds since `epoch`, plus 1; 0 when no step is in progress.
    since: AtomicU64,
}

impl Default for Busy {
    fn default() -> Self {
        Busy { epoch: Instant::now(), since: AtomicU64::new(0) }
    }
}

/// A reading of all numbers.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct EngineStats {
    /// Sequences with a seat in the batch.
    pub running: u32,
    /// Sequences that wait for one.
    pub waiting: u32,
    /// Prompt tokens of waiting sequences.
    pub waiting_tokens: u64,
    /// KV blocks in use by sequences, all groups.
    pub blocks_used: u64,
    /// All KV blocks, all groups.
    pub blocks_total: u64,
    /// Free KV blocks that hold prefixes which can be found until they are taken, all groups.
    pub blocks_evictable: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: u64,
    /// Times that a sequence let a step pass because another computes its next prefix block.
    pub prefix_waits: u64,
    /// Times that a waiting sequence's prefix was looked up in whole.
    pub prefix_lookups: u64,
    /// Sequences that gave their blocks back and were recomputed.
    pub preemptions: u64,
    /// Outcomes of sequences that ended or were preempted after their step was launched.
    pub discarded: u64,
    /// Requests whose reader left before the end.
    pub cancelled: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Prompt tokens of requests that started.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Rows computed, recomputed ones included.
    pub rows: u64,
    /// Draft tokens verified.
    pub draft_tokens: u64,
    /// Draft tokens accepted.
    pub draft_tokens_accepted: u64,
    /// Choices ended by an end-of-sequence or stop token.
    pub finished_stop: u64,
    /// Choices ended by length.
    pub finished_length: u64,
    /// Steps finished.
    pub steps: u64,
    /// Launch to finish of the last step.
    pub last_step: Duration,
    /// How long the step in progress has been running; zero when none is.
    pub step_running_for: Duration,
    /// The engine thread has ended.
    pub ended: bool,
    /// From submit to the first row.
    pub queue_time: TimeReading,
    /// From launch to finish of a step.
    pub step_time: TimeReading,
}

impl LiveStats {
    /// The oldest step in progress began at `instant`; `None` when none is in progress.
    pub fn set_busy_since(&self, instant: Option<Instant>) {
        let stamp = instant.map_or(0, |i| micros(i.saturating_duration_since(self.busy.epoch)) + 1);
        self.busy.since.store(stamp, Relaxed);
    }

    /// How long the oldest step in progress has been running: the watchdog's question.
    pub fn step_running_for(&self) -> Duration {
        match self.busy.since.load(Relaxed) {
            0 => Duration::ZERO,
            stamp => self.busy.epoch.elapsed().saturating_sub(Duration::from_micros(stamp - 1)),
        }
    }

    /// Reads the engine thread's numbers; the queue's are the handle's.
    pub fn read(&self) -> EngineStats {
        EngineStats {
            running: self.running.load(Relaxed),
            blocks_used: self.blocks_used.load(Relaxed),
            blocks_total: self.blocks_total.load(Relaxed),
            blocks_evictable: self.blocks_evictable.load(Relaxed),
            prefix_query_tokens: self.prefix_query_tokens.load(Relaxed),
            prefix_hit_tokens: self.prefix_hit_tokens.load(Relaxed),
            prefix_waits: self.prefix_waits.load(Relaxed),
            prefix_lookups: self.prefix_lookups.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
            discarded: self.discarded.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            generation_tokens: self.generation_tokens.load(Relaxed),
            rows: self.rows.load(Relaxed),
            draft_tokens: self.draft_tokens.load(Relaxed),
            draft_tokens_accepted: self.draft_tokens_accepted.load(Relaxed),
            finished_stop: self.finished_stop.load(Relaxed),
            finished_length: self.finished_length.load(Relaxed),
            steps: self.steps.load(Relaxed),
            last_step: Duration::from_micros(self.last_step_us.load(Relaxed)),
            step_running_for: self.step_running_for(),
            ended: self.ended.load(Relaxed),
            queue_time: self.queue_time.read(),
            step_time: self.step_time.read(),
            ..EngineStats::default()
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

fn micros(duration: Duration) -> u64 {
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

    #[test]
    fn the_watchdog_counts_only_while_a_step_is_in_progress() {
        let stats = LiveStats::default();
        assert_eq!(stats.step_running_for(), Duration::ZERO);
        stats.set_busy_since(Some(Instant::now()));
        std::thread::sleep(Duration::from_millis(5));
        assert!(stats.step_running_for() >= Duration::from_millis(4));
        stats.set_busy_since(None);
        assert_eq!(stats.step_running_for(), Duration::ZERO);
    }
}
