//! The worker team: N threads that run every command of a step together.
//!
//! All workers live in one rayon broadcast for the executor's life. A step is one region: each
//! worker walks the whole command list, with a barrier between commands. Waiting spins briefly
//! (commands are microseconds apart) and then parks: the network and clients share these cores. A
//! worker that panics poisons the barrier, so that the others leave the step instead of waiting.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Rounds of spinning before a worker parks within a step: some tens of microseconds.
const SPINS_IN_STEP: u32 = 2000;

/// Rounds of spinning before a thread parks between steps.
pub(crate) const SPINS_BETWEEN_STEPS: u32 = 200;

/// A number that threads watch: spin a little, then park until it changes.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    value: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Signal {
    /// The present value.
    pub(crate) fn load(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Sets the value and wakes all that wait for a change.
    pub(crate) fn store(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
        self.wake();
    }

    /// Adds one and wakes all that wait for a change.
    pub(crate) fn increment(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    /// Returns once the value is not `old`; gives the value.
    pub(crate) fn wait_while(&self, old: u32, spins: u32) -> u32 {
        for _ in 0..spins {
            let value = self.load();
            if value != old {
                return value;
            }
            std::hint::spin_loop();
        }
        // The counter is raised before the value is read again, and the writer reads the counter
        // after it wrote: one of the two sees the other, so no wake-up is lost.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let value = loop {
            let value = self.value.load(Ordering::SeqCst);
            if value != old {
                break value;
            }
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        value
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }
}

/// Unwinds a worker out of a step that another worker's panic has ended.
#[derive(Debug)]
pub(crate) struct BarrierPoisoned;

/// Where the workers of a team meet between commands.
#[derive(Debug)]
pub(crate) struct Barrier {
    workers: u32,
    arrived: AtomicU32,
    poisoned: AtomicBool,
    generation: Signal,
}

impl Barrier {
    /// For `workers` threads.
    pub(crate) fn new(workers: usize) -> Self {
        Barrier {
            workers: workers as u32,
            arrived: AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
            generation: Signal::default(),
        }
    }

    /// Returns when all workers are here; all their earlier writes are visible then.
    ///
    /// Unwinds with [`BarrierPoisoned`] when a worker has panicked.
    pub(crate) fn wait(&self) {
        if self.workers == 1 {
            return;
        }
        let generation = self.generation.load();
        self.check();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.increment();
        } else {
            self.generation.wait_while(generation, SPINS_IN_STEP);
        }
        self.check();
    }

    /// Releases everybody, now and at every later wait.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        self.generation.increment();
    }

    fn check(&self) {
        if self.poisoned.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new(BarrierPoisoned));
        }
    }
}

/// A worker's place in its team.
#[derive(Clone, Copy)]
pub(crate) struct Team<'a> {
    /// This worker, `0..workers`.
    pub(crate) worker: usize,
    /// Workers of the team.
    pub(crate) workers: usize,
    barrier: &'a Barrier,
}

impl<'a> Team<'a> {
    /// Worker `worker` of those that meet at `barrier`.
    pub(crate) fn new(worker: usize, barrier: &'a Barrier) -> Self {
        Team { worker, workers: barrier.workers as usize, barrier }
    }

    /// Waits for the whole team. Every worker must call it equally often.
    pub(crate) fn wait(&self) {
        self.barrier.wait();
    }

    /// Whether this worker does what only one may do.
    pub(crate) fn is_leader(&self) -> bool {
        self.worker == 0
    }

    /// This worker's contiguous share of `0..items`: shares differ by one item at most.
    pub(crate) fn share(&self, items: usize) -> std::ops::Range<usize> {
        let cut = |worker: usize| (items as u128 * worker as u128 / self.workers as u128) as usize;
        cut(self.worker)..cut(self.worker + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn shares_are_disjoint_and_cover_all() {
        for workers in 1..6 {
            let barrier = Barrier::new(workers);
            for items in [0, 1, 2, 5, 97] {
                let mut next = 0;
                for worker in 0..workers {
                    let share = Team::new(worker, &barrier).share(items);
                    assert_eq!(share.start, next);
                    assert!(share.len() <= items / workers + 1);
                    next = share.end;
                }
                assert_eq!(next, items);
            }
        }
    }

    #[test]
    fn nobody_passes_a_barrier_before_all_arrived() {
        let barrier = Barrier::new(3);
        let arrived = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 1..=500 {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        barrier.wait();
                        assert!(arrived.load(Ordering::SeqCst) >= 3 * round);
                        barrier.wait();
                    }
                });
            }
        });
        assert_eq!(arrived.into_inner(), 1500);
    }

    #[test]
    fn a_poisoned_barrier_lets_nobody_wait() {
        let barrier = Barrier::new(3);
        std::thread::scope(|scope| {
            let waits = [(); 2]
                .map(|()| scope.spawn(|| std::panic::catch_unwind(|| barrier.wait()).unwrap_err()));
            barrier.poison();
            for wait in waits {
                assert!(wait.join().unwrap().is::<BarrierPoisoned>());
            }
        });
        assert!(std::panic::catch_unwind(|| barrier.wait()).is_err());
    }
}
