//! What one turn after another schedules, seen from the runner.

use std::sync::Mutex;

use super::*;
use crate::handle::{EngineHandle, EventStream, border};
use crate::model::info::{InstanceInfo, KvGroupInfo, KvGroupKind};
use crate::request::{Event, FinishReason, Request, SamplerParams, Segment, StopParams, Tenant};
use crate::runner::NullRunner;
use crate::scheduler::settings::SchedulerSettings;
use pagoda_kernels::dtype::DType;

const EOS: u32 = 2;

/// Rows by request (its number travels as the sampler's seed), step by step.
type Log = Arc<Mutex<Vec<Vec<(u64, usize)>>>>;

struct Recorder {
    inner: NullRunner,
    requests: Vec<u64>,
    log: Log,
    /// The time: a step takes 1 ms a row.
    now: Arc<Mutex<Instant>>,
}

impl Runner for Recorder {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn launch(&mut self, plan: Plan) -> Result<Ticket, KernelError> {
        let batch = &plan.step.batch;
        for init in &batch.slot_inits {
            self.requests[init.slot as usize] = init.params.seed;
        }
        let request = |seq: usize| self.requests[batch.seq_slot[seq] as usize];
        let rows = (0..batch.num_seqs()).map(|seq| (request(seq), batch.query_len(seq)));
        self.log.lock().unwrap().push(rows.collect());
        *self.now.lock().unwrap() += Duration::from_millis(batch.num_tokens() as u64);
        self.inner.launch(plan)
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        self.inner.finish(ticket)
    }
}

struct Bench {
    handle: EngineHandle,
    step_loop: StepLoop,
    log: Log,
    streams: Vec<EventStream>,
}

fn bench(depth: usize, token: u32, num_blocks: u32, settings: SchedulerSettings) -> Bench {
    let group =
        KvGroupInfo { kind: KvGroupKind::Full, num_layers: 1, num_blocks, bytes_per_block: 1 };
    let info = InstanceInfo {
        max_model_len: 10_000,
        vocab: 1_000,
        block_size: 16,
        groups: vec![group],
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_logits_rows: 8,
        max_logprobs: 5,
        numerics: "null".into(),
        eos_token_ids: vec![EOS],
        default_sampling: Default::default(),
        dtype: DType::F32,
        kv_dtype: DType::F32,
        weight_bytes: 0,
        depth: depth as u32,
        device: "null".into(),
    };
    let (handle, inbox) = border(info, settings);
    let (log, now) = (Log::default(), Arc::new(Mutex::new(Instant::now())));
    let runner = Recorder {
        inner: NullRunner::new(depth, token),
        requests: vec![0; 4],
        log: log.clone(),
        now: now.clone(),
    };
    let clock = Box::new(move || *now.lock().unwrap());
    let parts = Parts { runner: Box::new(runner), inbox, clock, drafts: None, reaper: None };
    Bench { handle, step_loop: StepLoop::new(parts), log, streams: Vec::new() }
}

fn request(number: u64, prompt: u32, max_tokens: u32) -> Request {
    Request {
        id: "r".into(),
        input: vec![Segment::Tokens((0..prompt).map(|i| (i + number as u32 * 7) % 997).collect())],
        sampler: SamplerParams { seed: number, ..SamplerParams::default() },
        stop: StopParams {
            max_tokens,
            min_tokens: 0,
            eos_token_ids: vec![EOS],
            stop_token_ids: vec![],
        },
        n: 1,
        prompt_logprobs: None,
        tenant: Tenant::default(),
        priority: 0,
    }
}

impl Bench {
    fn submit(&mut self, request: Request) {
        self.streams.push(self.handle.submit(request).unwrap());
    }

    fn turns(&mut self, num: usize) {
        for _ in 0..num {
            self.step_loop.turn().unwrap();
            self.step_loop.scheduler().check_integrity().unwrap();
        }
    }

    /// Turns until nothing is left; the steps since the start.
    fn drain(&mut self) -> Vec<Vec<(u64, usize)>> {
        while self.step_loop.turn().unwrap() == Turn::Stepped {
            self.step_loop.scheduler().check_integrity().unwrap();
        }
        self.log.lock().unwrap().clone()
    }

    /// First step of each request, by number.
    fn first_step(&self, number: u64) -> Option<usize> {
        let log = self.log.lock().unwrap();
        log.iter().position(|step| step.iter().any(|&(request, _)| request == number))
    }
}

#[test]
fn a_long_prompt_comes_in_chunks_beside_decodes() {
    let mut bench = bench(1, 5, 100, SchedulerSettings::default());
    bench.submit(request(1, 10, 50));
    bench.turns(3);
    bench.submit(request(2, 200, 5));
    let log = bench.drain();
    assert_eq!(log[0], [(1, 10)]);
    assert_eq!(log[2], [(1, 1)]);
    assert_eq!(log[3..6], [[(1, 1), (2, 63)], [(1, 1), (2, 63)], [(1, 1), (2, 63)]]);
    assert_eq!(log[6], [(1, 1), (2, 11)]);
    assert_eq!(log[7], [(1, 1), (2, 1)]);
}

#[test]
fn an_older_prompt_leaves_a_row_for_everyone_behind_it() {
    let mut bench = bench(1, 5, 100, SchedulerSettings::default());
    bench.submit(request(1, 150, 5));
    bench.submit(request(2, 40, 5));
    let log = bench.drain();
    assert_eq!(log[0], [(1, 64)]);
    assert_eq!(log[1], [(1, 64)]);
    assert_eq!(log[2], [(1, 22), (2, 40)], "what is left of the budget goes to who waits");
}

#[test]
fn the_step_time_bounds_chunks_once_it_is_known() {
    let settings = SchedulerSettings {
        max_step: Some(Duration::from_millis(20)),
        max_chunk_tokens: Some(50),
        ..SchedulerSettings::default()
    };
    let mut bench = bench(1, 5, 200, settings);
    bench.submit(request(1, 30, 20));
    bench.submit(request(2, 300, 5));
    let log = bench.drain();
    let late = &log[4..9];
    let rows = |step: &[(u64, usize)]| step.iter().map(|&(_, rows)| rows).sum::<usize>();
    assert!(late.iter().all(|step| (16..=21).contains(&rows(step))), "1 ms a row: {late:?}");
}

#[test]
fn a_step_time_that_bare_decode_exceeds_lets_one_in_a_step() {
    let max_step = Some(Duration::from_millis(2));
    let mut bench =
        bench(1, 5, 200, SchedulerSettings { max_step, ..SchedulerSettings::default() });
    bench.submit(request(1, 30, 200));
    for _ in 0..40 {
        bench.step_loop.turn().unwrap();
    }
    for number in 2..8 {
        bench.submit(request(number, 10, 100));
    }
    let log = bench.drain();
    assert!(log.iter().any(|step| step.len() == 4), "every seat is taken: {log:?}");
}

#[test]
fn who_waits_for_blocks_does_not_block_the_queue_but_gets_its_turn() {
    // 20 blocks of 16: one request of 200 tokens leaves too few for another.
    let mut bench = bench(1, 5, 20, SchedulerSettings::default());
    bench.submit(request(1, 150, 40));
    bench.submit(request(2, 200, 10));
    for number in 3..90 {
        bench.submit(request(number, 16, 1));
    }
    let log = bench.drain();
    let first = |number| bench.first_step(number).unwrap();
    assert!(first(3) < first(2), "small ones go before the one that waits");
    assert!(first(2) < log.len() - 10, "and it does not wait for all of them");
    assert_eq!(bench.handle.stats().finished_length, 89);
}

#[test]
fn the_oldest_is_never_preempted_and_all_end() {
    let mut bench = bench(1, 5, 12, SchedulerSettings::default());
    for number in 1..5 {
        bench.submit(request(number, 40, 90));
    }
    let log = bench.drain();
    let oldest: usize = log.iter().flatten().filter(|&&(n, _)| n == 1).map(|&(_, r)| r).sum();
    assert_eq!(oldest, 40 + 89, "each of its rows was computed once");
    let stats = bench.handle.stats();
    assert!(stats.preemptions > 0);
    assert_eq!((stats.finished_length, stats.blocks_used), (4, 0));
}

#[test]
fn a_row_that_ran_past_the_end_is_discarded_at_depth_two() {
    for (depth, discarded) in [(1, 0), (2, 1)] {
        let mut bench = bench(depth, EOS, 20, SchedulerSettings::default());
        bench.submit(request(1, 10, 50));
        bench.drain();
        let events: Vec<_> = std::iter::from_fn(|| bench.streams[0].try_next()).collect();
        let [Event::Started { .. }, Event::Token { token, .. }, Event::Finished { reason, .. }] =
            &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!((token.id, *reason), (EOS, FinishReason::Eos));
        let stats = bench.handle.stats();
        assert_eq!((stats.discarded, stats.generation_tokens), (discarded, 1));
    }
}

#[test]
fn better_priority_starts_first_and_choices_follow_their_prompt() {
    let mut bench = bench(1, 5, 200, SchedulerSettings::default());
    bench.submit(request(1, 64, 2));
    bench.submit(Request { priority: -1, n: 3, ..request(2, 64, 2) });
    let log = bench.drain();
    assert_eq!(log[0], [(2, 64)]);
    // The other choices take all blocks of the prompt but the last, which holds its last token.
    assert_eq!(log[1].iter().filter(|&&(n, _)| n == 2).count(), 3);
    let rows: usize = log.iter().flatten().filter(|&&(n, _)| n == 2).map(|&(_, r)| r).sum();
    assert_eq!(rows, (64 + 1) + 2 * (16 + 1));
}

#[test]
fn a_choice_that_its_reader_stopped_ends_and_the_others_go_on() {
    for depth in [1, 2] {
        let mut bench = bench(depth, 5, 200, SchedulerSettings::default());
        bench.submit(Request { n: 2, ..request(1, 20, 90) });
        bench.turns(8);
        bench.streams[0].stop(0);
        bench.turns(2 * depth);
        let events: Vec<_> = std::iter::from_fn(|| bench.streams[0].try_next()).collect();
        let last = Event::Finished { choice: 0, reason: FinishReason::Stopped };
        assert!(events.contains(&last), "{events:?}");
        assert_eq!(bench.handle.stats().running, 1);
        bench.drain();
        let events: Vec<_> = std::iter::from_fn(|| bench.streams[0].try_next()).collect();
        let last = Event::Finished { choice: 1, reason: FinishReason::Length };
        assert_eq!(events.last(), Some(&last));
        assert_eq!(bench.handle.stats().blocks_used, 0);
    }
}
