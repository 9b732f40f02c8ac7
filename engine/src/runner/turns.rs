//! Models on one CPU take turns: a step has all of its cores, and the next one is another model's.
//!
//! Every model has a team of as many workers as there are cores. Two teams at work at once would
//! wait at each other's barriers while the cores belong to the other; so whoever launches takes a
//! turn for the step, in the order of asking. A model that is alone never waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pagoda_kernels::error::KernelError;

use super::{Plan, Runner, Ticket};

/// Turns on one device. Clones stand in the same line.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Line>);

#[derive(Debug, Default)]
struct Line {
    numbers: Mutex<Numbers>,
    moved: Condvar,
}

/// `ended ≤ given`: numbers from `ended` on wait, the first of them has its turn.
#[derive(Debug, Default)]
struct Numbers {
    given: u64,
    ended: u64,
}

/// A turn; dropping it ends it.
#[derive(Debug)]
pub struct Turn(Arc<Line>);

impl Turns {
    /// A turn, if nobody has one and nobody waits.
    pub fn try_take(&self) -> Option<Turn> {
        let mut numbers = self.0.lock();
        if numbers.given != numbers.ended {
            return None;
        }
        numbers.given += 1;
        Some(Turn(self.0.clone()))
    }

    /// A turn, after all who asked before.
    pub fn take(&self) -> Turn {
        let mut numbers = self.0.lock();
        let mine = numbers.given;
        numbers.given += 1;
        let is_early = |numbers: &mut Numbers| numbers.ended != mine;
        drop(self.0.moved.wait_while(numbers, is_early).unwrap_or_else(PoisonError::into_inner));
        Turn(self.0.clone())
    }

    /// `inner`, whose steps stand in this line. Those of a deeper runner have a queue of their own
    /// on their device, and stay as they are.
    pub fn line_up(&self, inner: Box<dyn Runner>) -> Box<dyn Runner> {
        if inner.depth() > 1 {
            return inner;
        }
        Box::new(TurnRunner { inner, turns: self.clone(), turn: None, waiting: None })
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().ended += 1;
        self.0.moved.notify_all();
    }
}

/// A runner whose steps take turns with those of others.
struct TurnRunner {
    inner: Box<dyn Runner>,
    turns: Turns,
    /// The step in progress has it. Ends after `inner`, which may still be at work.
    turn: Option<Turn>,
    /// A step that waits for its turn.
    waiting: Option<Plan>,
}

impl Runner for TurnRunner {
    fn depth(&self) -> usize {
        1
    }

    fn decode_equals_prefill(&self) -> bool {
        self.inner.decode_equals_prefill()
    }

    /// Never waits, so that readers are woken whoever has the turn.
    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        match self.turns.try_take() {
            Some(turn) => {
                self.turn = Some(turn);
                self.inner.launch(plan)
            }
            None => {
                let ticket = Ticket(plan.number);
                self.waiting = Some(plan);
                Ok(ticket)
            }
        }
    }

    fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    fn begin(&mut self) -> Result<(), KernelError> {
        if let Some(plan) = self.waiting.take() {
            self.turn = Some(self.turns.take());
            self.inner.launch(plan)?;
        }
        Ok(())
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        let finished = self.inner.finish(ticket);
        self.turn = None;
        finished
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc::{SyncSender, sync_channel};
    use std::time::Duration;

    use super::*;
    use crate::runner::NullRunner;

    /// Counts who is at work at once, and tells every launch.
    struct Watched {
        inner: NullRunner,
        name: char,
        at_work: Arc<AtomicUsize>,
        log: SyncSender<char>,
    }

    impl Runner for Watched {
        fn depth(&self) -> usize {
            1
        }

        fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
            assert_eq!(self.at_work.fetch_add(1, SeqCst), 0, "two steps at once");
            self.log.send(self.name).unwrap();
            std::thread::sleep(Duration::from_micros(200));
            self.inner.launch(plan)
        }

        fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
            self.at_work.fetch_sub(1, SeqCst);
            self.inner.finish(ticket)
        }
    }

    fn plan(number: u64) -> Plan {
        Plan { number, ..Plan::default() }
    }

    #[test]
    fn steps_of_several_models_never_run_at_once_and_alternate() {
        let (turns, at_work, (log, told)) = (Turns::default(), Arc::default(), sync_channel(300));
        std::thread::scope(|scope| {
            for name in ['a', 'b', 'c'] {
                let at_work = Arc::clone(&at_work);
                let inner =
                    Watched { inner: NullRunner::new(1, 0), name, at_work, log: log.clone() };
                let mut runner = turns.line_up(Box::new(inner));
                scope.spawn(move || {
                    for number in 0..100 {
                        let ticket = runner.launch(plan(number)).unwrap();
                        runner.begin().unwrap();
                        assert_eq!(runner.finish(ticket).unwrap().number, number);
                    }
                });
            }
        });
        drop(log);
        let order: Vec<char> = told.iter().collect();
        assert_eq!(order.len(), 300);
        // While all three ask nobody has two turns in a row for long: whoever ends goes to the back.
        let busy = &order[order.len() / 10..order.len() / 2];
        let again = busy.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(again < busy.len() / 2, "{again} of {}", busy.len());
    }

    #[test]
    fn launching_never_waits_and_who_asked_first_is_first() {
        let turns = Turns::default();
        let held = turns.take();
        let mut runner = turns.line_up(Box::new(NullRunner::new(1, 0)));
        let ticket = runner.launch(plan(7)).unwrap();
        assert!(runner.is_waiting());
        let waits = std::thread::spawn(move || {
            runner.begin().unwrap();
            assert!(!runner.is_waiting());
            runner.finish(ticket).unwrap().number
        });
        while turns.0.lock().given < 2 {
            std::thread::yield_now();
        }
        assert!(turns.try_take().is_none(), "somebody waits");
        drop(held);
        assert_eq!(waits.join().unwrap(), 7);
        assert!(turns.try_take().is_some(), "a turn that ended is nobody's");
    }

    #[test]
    fn a_turn_ends_with_a_fault_or_a_panic() {
        struct Faulty;
        impl Runner for Faulty {
            fn depth(&self) -> usize {
                1
            }
            fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
                Ok(Ticket(plan.number))
            }
            fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
                match ticket.0 {
                    0 => Err(KernelError::Fault("planted".into())),
                    _ => panic!("planted"),
                }
            }
        }
        let turns = Turns::default();
        for number in [0, 1] {
            let mut runner = turns.line_up(Box::new(Faulty));
            let ticket = runner.launch(plan(number)).unwrap();
            assert!(turns.try_take().is_none());
            let ended = std::thread::spawn(move || runner.finish(ticket).is_err()).join();
            assert_eq!(ended.is_err(), number == 1);
            assert!(turns.try_take().is_some());
        }
    }

    #[test]
    fn a_deep_runner_stays_as_it_is() {
        let turns = Turns::default();
        let mut runner = turns.line_up(Box::new(NullRunner::new(2, 0)));
        assert_eq!(runner.depth(), 2);
        let _ = runner.launch(plan(0)).unwrap();
        assert!(turns.try_take().is_some());
    }
}
