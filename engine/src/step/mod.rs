//! The loop: drain the inbox, cancel, schedule, launch, wake readers, finish the oldest, commit.
//!
//! One thread runs it and owns everything below. The depth is the runner's: at depth 2 step n + 1
//! is launched before step n is finished, by the same code. No async, no lock, and no allocation
//! after warm-up. What the device does meanwhile hides the waking of readers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use pagoda_kernels::batch::Batch;
use pagoda_kernels::device::Step;
use pagoda_kernels::error::KernelError;
use pagoda_kernels::sampling::SlotInit;

use crate::handle::{Inbox, Message, Shared};
use crate::request::StepError;
use crate::runner::{Plan, Runner, Ticket};
use crate::scheduler::Scheduler;
use crate::scheduler::draft::DraftSource;
use crate::scheduler::record::StepRecord;
use crate::sequence::SequenceGroup;

pub use self::start::{ENGINE_THREAD, EngineThread, start, start_beside};

/// Takes a finished step's output into its sequences.
pub mod commit;

/// The engine thread: starts the loop and ends with it.
pub mod start;

/// Where the loop reads the time: steps are timed with it.
pub type Clock = Box<dyn FnMut() -> Instant + Send>;

/// What the loop is made of.
pub struct Parts {
    /// Runs the steps.
    pub runner: Box<dyn Runner>,
    /// Requests come from here.
    pub inbox: Inbox,
    /// The time.
    pub clock: Clock,
    /// Guesses tokens, if there is one.
    pub drafts: Option<Box<dyn DraftSource>>,
    /// Takes what is left of requests, to drop it elsewhere.
    pub reaper: Option<SyncSender<Leftover>>,
}

/// What is left of a request that ended: freeing it takes longer than a step should.
#[derive(Debug)]
pub enum Leftover {
    /// All of it.
    Group(Box<SequenceGroup>),
    /// What a step in progress still had of it.
    SlotInit(SlotInit),
}

/// The step loop of one instance.
pub struct StepLoop {
    runner: Box<dyn Runner>,
    inbox: Inbox,
    clock: Clock,
    reaper: Option<SyncSender<Leftover>>,
    scheduler: Scheduler,
    /// Launched and not finished, oldest first.
    in_flight: VecDeque<(Ticket, StepRecord)>,
    plans: Vec<Plan>,
    records: Vec<StepRecord>,
    next_number: u64,
    /// When the last step was finished: a step launched before it was waiting for it.
    finished_at: Option<Instant>,
    has_handles: bool,
}

/// What one turn of the loop did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A step was launched or finished.
    Stepped,
    /// Nothing is in progress and nobody waits.
    Idle,
}

impl StepLoop {
    /// A loop with nothing to do.
    pub fn new(parts: Parts) -> Self {
        let Parts { runner, inbox, clock, drafts, reaper } = parts;
        let depth = runner.depth().max(1);
        let info = &inbox.shared.info;
        let (num_groups, block_size) = (info.groups.len(), info.block_size as usize);
        let batch = || Batch::with_room(num_groups, &info.limits(), block_size);
        let plan = || Plan { step: Step { batch: batch(), ..Step::default() }, ..Plan::default() };
        let record = || StepRecord::with_room(info.max_num_seqs as usize);
        StepLoop {
            scheduler: Scheduler::new(inbox.shared.clone(), drafts, runner.decode_equals_prefill()),
            in_flight: VecDeque::with_capacity(depth),
            plans: (0..depth).map(|_| plan()).collect(),
            records: (0..depth).map(|_| record()).collect(),
            runner,
            inbox,
            clock,
            reaper,
            next_number: 0,
            finished_at: None,
            has_handles: true,
        }
    }

    /// Runs until all handles are gone and all requests have ended, or until the drain's deadline.
    /// A device fault fails every request and is returned.
    pub fn run(&mut self) -> Result<(), StepError> {
        loop {
            let turn = self.turn()?;
            match self.shared().drain_left() {
                Some(_) if turn == Turn::Idle => return Ok(()),
                Some(Duration::ZERO) => {
                    self.scheduler.fail_all(&StepError::ShuttingDown);
                    return Ok(());
                }
                _ => {}
            }
            if turn == Turn::Idle {
                if !self.has_handles {
                    return Ok(());
                }
                self.park();
            }
        }
    }

    /// One turn: everything from the inbox to the commit of the oldest step.
    pub fn turn(&mut self) -> Result<Turn, StepError> {
        self.drain_inbox();
        self.scheduler.cancel_abandoned();
        let launched = match self.launch_next() {
            Ok(launched) => launched,
            Err(fault) => return Err(self.device_fault(&fault)),
        };
        self.scheduler.wake_readers();
        self.drop_ended();
        let is_full = self.in_flight.len() >= self.runner.depth().max(1);
        if is_full || !launched {
            let finished = match self.finish_oldest() {
                Ok(finished) => finished,
                Err(fault) => return Err(self.device_fault(&fault)),
            };
            if !launched && !finished {
                self.update_gauges();
                return Ok(Turn::Idle);
            }
        }
        self.update_gauges();
        Ok(Turn::Stepped)
    }

    /// Who computes what, for checks from outside.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Tells `hook` of every block whose content is lost.
    pub fn on_lost(&mut self, hook: crate::kv::prefix_cache::LostHook) {
        self.scheduler.kv.on_lost(hook);
    }

    /// Plants a defect: outcomes of ended runs count. Simulations must notice it.
    pub fn forget_to_discard(&mut self) {
        self.scheduler.sequences.take_stale();
    }

    /// Plants a defect: blocks that a step copies are not held until it is filled. Simulations must
    /// notice it.
    pub fn forget_sources(&mut self) {
        self.scheduler.kv.forget_sources();
    }

    fn drain_inbox(&mut self) {
        while self.scheduler.has_room() {
            match self.inbox.messages.try_recv() {
                Ok(Message::Submit(group)) => self.scheduler.admit(group),
                Ok(Message::Wake) => {}
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.has_handles = false;
                    return;
                }
            }
        }
    }

    /// Sleeps until something arrives.
    fn park(&mut self) {
        // The timeout only bounds how late a drain is seen whose wake found a full inbox.
        match self.inbox.messages.recv_timeout(Duration::from_secs(1)) {
            Ok(Message::Submit(group)) => self.scheduler.admit(group),
            Ok(Message::Wake) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.has_handles = false,
        }
    }

    /// Schedules and launches a step if one more may be in progress. False if nothing was to run.
    fn launch_next(&mut self) -> Result<bool, KernelError> {
        let (Some(mut plan), Some(mut record)) = (self.plans.pop(), self.records.pop()) else {
            return Ok(false);
        };
        self.scheduler.schedule(&mut plan.step.batch, &mut record);
        if record.entries.is_empty() {
            self.plans.push(plan);
            self.records.push(record);
            return Ok(false);
        }
        plan.number = self.next_number;
        self.next_number += 1;
        let now = (self.clock)();
        record.launched_at = Some(now);
        if self.in_flight.is_empty() {
            self.shared().pulse.set_busy_since(Some(now));
        }
        let ticket = self.runner.launch(plan)?;
        if self.runner.is_waiting() {
            self.shared().pulse.set_busy_since(None);
        }
        for index in 0..record.entries.len() {
            self.scheduler.publish(record.entries[index].id);
        }
        self.in_flight.push_back((ticket, record));
        Ok(true)
    }

    /// Waits for the oldest step and commits it. False if none is in progress.
    fn finish_oldest(&mut self) -> Result<bool, KernelError> {
        let Some((ticket, mut record)) = self.in_flight.pop_front() else { return Ok(false) };
        if self.runner.is_waiting() {
            self.runner.begin()?;
            // What others took is no time of this step: neither what it costs nor a hang.
            let now = (self.clock)();
            record.launched_at = Some(now);
            self.shared().pulse.set_busy_since(Some(now));
        }
        let mut plan = self.runner.finish(ticket)?;
        self.time_step(&record);
        commit::commit(&mut self.scheduler, &record, &plan.step)?;
        for (id, init) in record.inits.drain(..).zip(plan.step.batch.slot_inits.drain(..)) {
            if let Some(init) = self.scheduler.take_back(id, init) {
                self.reap(Leftover::SlotInit(init));
            }
        }
        self.plans.push(plan);
        self.records.push(record);
        Ok(true)
    }

    fn time_step(&mut self, record: &StepRecord) {
        let now = (self.clock)();
        let launched_at = record.launched_at.unwrap_or(now);
        let began = self.finished_at.map_or(launched_at, |finished| finished.max(launched_at));
        self.finished_at = Some(now);
        let took = now.saturating_duration_since(began);
        self.scheduler.cost.learn(record.size, took.as_secs_f64());
        let stats = &self.shared().stats;
        stats.step_time.record(took);
        stats.steps.fetch_add(1, Relaxed);
        stats.rows.fetch_add(record.size.rows as u64, Relaxed);
        self.shared().pulse.set_busy_since((!self.in_flight.is_empty()).then_some(now));
    }

    fn update_gauges(&self) {
        let stats = &self.shared().stats;
        let blocks = self.scheduler.kv.counts();
        stats.running.store(self.scheduler.num_running() as u64, Relaxed);
        stats.blocks_used.store(blocks.used, Relaxed);
        stats.blocks_total.store(blocks.total, Relaxed);
        stats.blocks_evictable.store(blocks.evictable, Relaxed);
    }

    fn drop_ended(&mut self) {
        while let Some(group) = self.scheduler.pop_ended() {
            self.reap(Leftover::Group(group));
        }
    }

    /// Has `leftover` dropped elsewhere; a reaper that is busy or gone leaves the work here.
    fn reap(&self, leftover: Leftover) {
        match &self.reaper {
            Some(reaper) => drop(reaper.try_send(leftover)),
            None => drop(leftover),
        }
    }

    /// Every open stream is told; the process is about to end.
    fn device_fault(&mut self, fault: &KernelError) -> StepError {
        tracing::error!(%fault, "the device failed: every request ends, and the engine with them");
        let error = StepError::Device(fault.to_string());
        self.drain_inbox();
        self.scheduler.fail_all(&error);
        self.drop_ended();
        error
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.inbox.shared
    }
}

#[cfg(test)]
mod tests;
