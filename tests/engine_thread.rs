//! The engine thread as its users see it: real threads, real readers, drains and faults.

#![allow(clippy::panic, clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_engine::handle::EventStream;
use pagoda_engine::request::{Event, StepError, SubmitError};
use pagoda_engine::runner::{Plan, Runner, Ticket};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::start;
use pagoda_kernels::error::KernelError;
use pagoda_tests::simulation::hash_runner::HashRunner;
use pagoda_tests::simulation::workload::{Ask, Workload, instance};

/// A runner that takes its time, and breaks if told to.
struct Slow {
    inner: HashRunner,
    step: Duration,
    fault_at: u64,
}

impl Runner for Slow {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        self.inner.launch(plan)
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        std::thread::sleep(self.step);
        if ticket.0 >= self.fault_at {
            return Err(KernelError::Fault("planted".into()));
        }
        self.inner.finish(ticket)
    }
}

fn slow(depth: u32, step: Duration, fault_at: u64) -> (Box<Slow>, Workload) {
    let mut workload = Workload::from_seed(7, 40);
    workload.info = instance(depth, 16, 200, (40, 60));
    workload.decode_differs = false;
    for ask in &mut workload.asks {
        (ask.max_tokens, ask.min_tokens, ask.n) = (40, 40, 1);
    }
    let (inner, _) = HashRunner::new(workload.info.clone(), None);
    (Box::new(Slow { inner, step, fault_at }), workload)
}

fn salted(ask: &Ask, number: usize) -> pagoda_engine::request::Request {
    ask.request(number as u32, true)
}

/// Reads until the end, waiting like a task would.
fn read(mut stream: EventStream) -> Vec<Event> {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut events = Vec::new();
    loop {
        match stream.poll_next(&mut context) {
            std::task::Poll::Ready(Some(event)) => events.push(event),
            std::task::Poll::Ready(None) => return events,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn readers_on_their_own_threads_get_the_closed_form() {
    for depth in [1, 2] {
        let (runner, workload) = slow(depth, Duration::ZERO, u64::MAX);
        let answers = workload.answers();
        let (handle, thread) =
            start(runner, workload.info.clone(), SchedulerSettings::default()).unwrap();
        std::thread::scope(|scope| {
            for (number, ask) in workload.asks.iter().enumerate() {
                let (handle, expected) = (handle.clone(), &answers[number][0].tokens);
                scope.spawn(move || {
                    let events = read(handle.submit(salted(ask, number)).unwrap());
                    let tokens: Vec<u32> = events
                        .iter()
                        .filter_map(|event| match event {
                            Event::Token { token, .. } => Some(token.id),
                            _ => None,
                        })
                        .collect();
                    assert_eq!(&tokens, expected);
                    assert!(matches!(events.last(), Some(Event::Finished { .. })));
                });
            }
        });
        drop(handle);
        assert_eq!(thread.join().unwrap(), Ok(()), "the thread ends with its last handle");
    }
}

#[test]
fn leaving_frees_the_blocks_within_a_step() {
    let (runner, workload) = slow(1, Duration::from_millis(2), u64::MAX);
    let (handle, thread) =
        start(runner, workload.info.clone(), SchedulerSettings::default()).unwrap();
    let streams: Vec<_> = workload
        .asks
        .iter()
        .enumerate()
        .map(|(number, ask)| handle.submit(salted(ask, number)).unwrap())
        .collect();
    while handle.stats().blocks_used == 0 {
        std::thread::yield_now();
    }
    drop(streams);
    let left = handle.stats().steps;
    while handle.stats().blocks_used > 0 || handle.stats().waiting > 0 {
        std::thread::yield_now();
    }
    // The step in progress, and at most the one that was launched as the readers left.
    assert!(handle.stats().steps <= left + 2, "{} steps after {left}", handle.stats().steps);
    drop(handle);
    assert_eq!(thread.join().unwrap(), Ok(()));
}

#[test]
fn a_drain_lets_requests_end_and_its_deadline_fails_the_rest() {
    for (deadline, ends) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
        let (runner, workload) = slow(2, Duration::from_millis(1), u64::MAX);
        let (handle, thread) =
            start(runner, workload.info.clone(), SchedulerSettings::default()).unwrap();
        let stream = handle.submit(salted(&workload.asks[0], 0)).unwrap();
        while handle.stats().steps == 0 {
            std::thread::yield_now();
        }
        handle.drain(deadline);
        assert!(!handle.is_serving());
        let refused = handle.submit(salted(&workload.asks[1], 1)).unwrap_err();
        assert_eq!(refused, SubmitError::Draining);
        assert_eq!(thread.join().unwrap(), Ok(()));
        let last = read(stream).pop();
        match last {
            Some(Event::Finished { .. }) => assert!(ends),
            Some(Event::Failed(StepError::ShuttingDown)) => assert!(!ends),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_device_fault_reaches_every_reader_and_ends_the_thread() {
    let (runner, workload) = slow(2, Duration::ZERO, 5);
    let (handle, thread) =
        start(runner, workload.info.clone(), SchedulerSettings::default()).unwrap();
    let streams: Vec<_> = workload
        .asks
        .iter()
        .enumerate()
        .filter_map(|(number, ask)| handle.submit(salted(ask, number)).ok())
        .collect();
    let error = thread.join().unwrap().unwrap_err();
    assert_eq!(error, StepError::Device("device fault: planted".into()));
    for stream in streams {
        assert_eq!(read(stream).pop(), Some(Event::Failed(error.clone())));
    }
    let refused = handle.submit(salted(&workload.asks[0], 0)).unwrap_err();
    assert_eq!(refused, SubmitError::Stopped);
}

#[test]
fn the_watchdog_sees_a_step_that_does_not_finish() {
    let (runner, workload) = slow(1, Duration::from_millis(300), u64::MAX);
    let (handle, thread) =
        start(runner, workload.info.clone(), SchedulerSettings::default()).unwrap();
    assert_eq!(handle.step_running_for(), Duration::ZERO);
    let stream = handle.submit(salted(&workload.asks[0], 0)).unwrap();
    let start = Instant::now();
    while handle.step_running_for() < Duration::from_millis(100) {
        assert!(start.elapsed() < Duration::from_secs(60), "the step is never noticed");
        std::thread::yield_now();
    }
    drop(stream);
    drop(handle);
    assert_eq!(thread.join().unwrap(), Ok(()));
}
