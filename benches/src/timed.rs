//! A runner that notes when steps are launched and finished: what the host does between two steps, how
//! far apart steps are, and how fast the same step follows itself.
//!
//! For that a step is launched again and again behind itself. Its tokens are lost by it, so what a
//! watched engine answers is worth nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pagoda_engine::runner::{Plan, Runner, Ticket};
use pagoda_kernels::batch::Batch;
use pagoda_kernels::device::Step;
use pagoda_kernels::error::KernelError;

/// What is watched: decodes of so many sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Sequences, of which each has one row.
    pub seqs: usize,
    /// Steps to note, at most.
    pub steps: usize,
    /// Behind so many of them one is repeated, so often; 0 for never.
    pub repeat: (usize, usize),
}

/// What was noted.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    watched: Watched,
    seen: usize,
    /// From the return of a step's `finish` to that of the next `launch`.
    pub host: Vec<Duration>,
    /// From the return of a step's `finish` to that of the next.
    pub between: Vec<Duration>,
    /// The same of one step behind itself, with nothing in between.
    pub repeated: Vec<Duration>,
}

/// Notes of a [`Timed`] runner, which runs in another thread.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<Noted>>);

impl Notes {
    /// Forgets all, and watches from now on.
    pub fn watch(&self, watched: Watched) {
        let room = || Vec::with_capacity(watched.steps);
        let (host, between) = (room(), room());
        *self.lock() = Noted { watched, seen: 0, host, between, repeated: Vec::new() };
    }

    /// What was noted till now.
    pub fn read(&self) -> Noted {
        self.lock().clone()
    }

    /// Steps still to be noted.
    pub fn left(&self) -> usize {
        let noted = self.lock();
        noted.watched.steps - noted.seen
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    /// Whether `batch` is a step that is watched.
    fn is_watched(&self, batch: &Batch) -> bool {
        let seqs = batch.num_seqs();
        seqs == self.watched.seqs && batch.num_tokens() == seqs
    }

    /// Whether there are enough notes.
    fn is_full(&self) -> bool {
        self.seen >= self.watched.steps
    }

    /// Whether `batch`, which is watched, is the one to be repeated: no sequence may begin with it.
    fn is_repeated(&self, batch: &Batch) -> bool {
        let (behind, times) = self.watched.repeat;
        times > 0 && self.seen >= behind && self.repeated.is_empty() && batch.slot_inits.is_empty()
    }
}

/// A runner around another.
pub struct Timed {
    inner: Box<dyn Runner>,
    notes: Notes,
    /// When a step was finished, and whether that was a watched one.
    finished: Option<(Instant, bool)>,
    /// Launched and not finished, oldest first.
    launched: VecDeque<u64>,
    /// Finished before anybody asked, oldest first.
    early: VecDeque<Plan>,
}

impl Timed {
    /// Watches `inner`; the notes say what.
    pub fn new(inner: Box<dyn Runner>) -> (Self, Notes) {
        let notes = Notes::default();
        let (launched, early) = (VecDeque::with_capacity(4), VecDeque::with_capacity(4));
        (Timed { inner, notes: notes.clone(), finished: None, launched, early }, notes)
    }

    /// Launches the step of `batch` behind itself, `times` times, with all else out of the way.
    fn repeat(&mut self, batch: &Batch, times: usize) -> Result<(), KernelError> {
        while let Some(number) = self.launched.pop_front() {
            let plan = self.inner.finish(Ticket(number))?;
            self.early.push_back(plan);
        }
        let depth = self.inner.depth().max(1);
        let mut spare: Vec<Plan> = (0..depth)
            .map(|_| Plan { number: 0, step: Step { batch: batch.clone(), ..Step::default() } })
            .collect();
        let mut tickets = VecDeque::with_capacity(depth);
        let mut times_noted = Vec::with_capacity(times);
        let mut before = None;
        for number in 0..=(times + depth) as u64 {
            if spare.is_empty()
                && let Some(ticket) = tickets.pop_front()
            {
                spare.push(self.inner.finish(ticket)?);
                let now = Instant::now();
                times_noted.extend(before.replace(now).map(|before| now - before));
            }
            if let Some(mut plan) = spare.pop() {
                plan.number = number;
                tickets.push_back(self.inner.launch(plan)?);
            }
        }
        for ticket in tickets {
            self.inner.finish(ticket)?;
        }
        self.notes.lock().repeated = times_noted;
        self.finished = None;
        Ok(())
    }
}

impl Runner for Timed {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn decode_equals_prefill(&self) -> bool {
        self.inner.decode_equals_prefill()
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        let (is_watched, repeats) = {
            let noted = self.notes.lock();
            let is_watched = noted.is_watched(&plan.step.batch) && !noted.is_full();
            let repeats = is_watched && noted.is_repeated(&plan.step.batch);
            (is_watched, repeats.then_some(noted.watched.repeat.1))
        };
        if let Some(times) = repeats {
            self.repeat(&plan.step.batch, times)?;
        }
        self.launched.push_back(plan.number);
        let ticket = self.inner.launch(plan)?;
        if is_watched {
            let mut noted = self.notes.lock();
            noted.seen += 1;
            if let Some((finished_at, _)) = self.finished {
                noted.host.push(finished_at.elapsed());
            }
        }
        Ok(ticket)
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        let plan = match self.early.pop_front() {
            Some(plan) => plan,
            None => {
                self.launched.pop_front();
                self.inner.finish(ticket)?
            }
        };
        let now = Instant::now();
        let mut noted = self.notes.lock();
        let is_watched = noted.is_watched(&plan.step.batch);
        if let Some((before, true)) = self.finished
            && is_watched
            && noted.between.len() < noted.watched.steps
        {
            noted.between.push(now - before);
        }
        drop(noted);
        self.finished = Some((now, is_watched));
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use pagoda_engine::runner::NullRunner;

    use super::*;

    fn plan(number: u64, seqs: u32) -> Plan {
        let mut plan = Plan { number, ..Plan::default() };
        plan.step.batch.ids = vec![1; seqs as usize];
        plan.step.batch.kv_len = vec![1; seqs as usize];
        plan
    }

    #[test]
    fn steps_come_back_in_order_though_one_is_repeated() {
        let (mut timed, notes) = Timed::new(Box::new(NullRunner::new(2, 7)));
        notes.watch(Watched { seqs: 3, steps: 100, repeat: (2, 5) });
        let mut in_flight = VecDeque::new();
        let mut numbers = Vec::new();
        for number in 0..10 {
            // The first is no decode of three.
            in_flight
                .push_back(timed.launch(plan(number, if number == 0 { 2 } else { 3 })).unwrap());
            if in_flight.len() == 2 {
                numbers.push(timed.finish(in_flight.pop_front().unwrap()).unwrap().number);
            }
        }
        assert_eq!(numbers, (0..9).collect::<Vec<_>>());
        let noted = notes.read();
        assert_eq!((noted.seen, noted.repeated.len()), (9, 5));
        // Not those beside what is not watched, nor beside what is repeated.
        assert!(noted.host.len() >= 7 && noted.between.len() >= 6, "{noted:?}");
    }

    #[test]
    fn a_sequence_that_begins_is_not_repeated() {
        let (mut timed, notes) = Timed::new(Box::new(NullRunner::new(1, 7)));
        notes.watch(Watched { seqs: 1, steps: 10, repeat: (0, 3) });
        let mut first = plan(0, 1);
        let init = pagoda_kernels::sampling::SlotInit {
            slot: 0,
            params: Default::default(),
            prompt: vec![],
            output: vec![],
        };
        first.step.batch.slot_inits.push(init);
        let ticket = timed.launch(first).unwrap();
        timed.finish(ticket).unwrap();
        assert!(notes.read().repeated.is_empty());
        let ticket = timed.launch(plan(1, 1)).unwrap();
        assert_eq!(timed.finish(ticket).unwrap().number, 1);
        assert_eq!(notes.read().repeated.len(), 3);
    }
}
