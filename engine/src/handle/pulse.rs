//! Whether the engine thread lives, and how long its step has been running.
//!
//! The engine thread writes, the watchdog and submitters read. Never a lock: two atomics.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::{Duration, Instant};

use super::stats::micros;

/// Signs of life of an engine thread.
#[derive(Debug)]
pub struct Pulse {
    epoch: Instant,
    /// Since when the oldest step in progress has been running: microseconds since `epoch`, plus
    /// 1; 0 when none is in progress.
    busy_since: AtomicU64,
    has_ended: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        let (busy_since, has_ended) = (AtomicU64::new(0), AtomicBool::new(false));
        Pulse { epoch: Instant::now(), busy_since, has_ended }
    }
}

impl Pulse {
    /// The oldest step in progress began at `instant`; `None` when none is in progress.
    pub fn set_busy_since(&self, instant: Option<Instant>) {
        let stamp = instant.map_or(0, |i| micros(i.saturating_duration_since(self.epoch)) + 1);
        self.busy_since.store(stamp, Relaxed);
    }

    /// How long the oldest step in progress has been running: the watchdog's question.
    pub fn step_running_for(&self) -> Duration {
        match self.busy_since.load(Relaxed) {
            0 => Duration::ZERO,
            stamp => self.epoch.elapsed().saturating_sub(Duration::from_micros(stamp - 1)),
        }
    }

    /// The engine thread is about to end.
    pub fn set_ended(&self) {
        self.has_ended.store(true, Release);
    }

    /// Whether the engine thread has ended.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_counts_only_while_a_step_is_in_progress() {
        let pulse = Pulse::default();
        assert_eq!(pulse.step_running_for(), Duration::ZERO);
        pulse.set_busy_since(Some(Instant::now()));
        std::thread::sleep(Duration::from_millis(5));
        assert!(pulse.step_running_for() >= Duration::from_millis(4));
        pulse.set_busy_since(None);
        assert_eq!(pulse.step_running_for(), Duration::ZERO);
    }
}
