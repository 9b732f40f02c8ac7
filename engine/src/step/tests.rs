//! What one turn after another schedules, seen from the runner.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;

use super::*;
use crate::handle::{EngineHandle, EventStream, border};
use crate::model::info::{InstanceInfo, KvGroupInfo, KvGroupKind};
use crate::request::{Event, FinishReason, Request, SamplerParams, Segment, StopParams, Tenant};
use crate::runner::NullRunner;
use crate::scheduler::settings::SchedulerSettings;
use crate::sequence::SeqId;
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
    /// Whether steps wait for others, an hour each; whoever watches sees nothing run meanwhile.
    waits: Arc<AtomicBool>,
    is_waiting: bool,
    /// Of steps in progress.
    rows: VecDeque<usize>,
    watched: Arc<Shared>,
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
        self.rows.push_back(batch.num_tokens());
        self.is_waiting = self.waits.load(Relaxed);
        self.inner.launch(plan)
    }

    fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    fn begin(&mut self) -> Result<(), KernelError> {
        assert_eq!(self.watched.pulse.step_running_for(), Duration::ZERO);
        *self.now.lock().unwrap() += Duration::from_secs(3600);
        self.is_waiting = false;
        Ok(())
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Plan, KernelError> {
        // The time that a step takes passes while it runs.
        let rows = self.rows.pop_front().unwrap();
        *self.now.lock().unwrap() += Duration::from_millis(rows as u64);
        self.inner.finish(ticket)
    }
}

struct Bench {
    handle: EngineHandle,
    waits: Arc<AtomicBool>,
    step_loop: StepLoop,
    log: Log,
    streams: Vec<EventStream>,
}

fn bench(depth: usize, token: u32, num_blocks: u32, settings: SchedulerSettings) -> Bench {
    bench_of(depth, token, &[(KvGroupKind::Full, num_blocks)], settings)
}

fn bench_of(
    depth: usize,
    token: u32,
    groups: &[(KvGroupKind, u32)],
    settings: SchedulerSettings,
) -> Bench {
    let group =
        |&(kind, num_blocks)| KvGroupInfo { kind, num_layers: 1, num_blocks, bytes_per_block: 1 };
    let info = InstanceInfo {
        max_model_len: 10_000,
        vocab: 1_000,
        block_size: 16,
        groups: groups.iter().map(group).collect(),
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_logits_rows: 8,
        max_logprobs: 5,
        numerics: "null".into(),
        eos_token_ids: vec![EOS],
        default_sampling: Default::default(),
        dtype: DType::F32,
        quantization: None,
        kv_dtype: DType::F32.into(),
        weight_bytes: 0,
        depth: depth as u32,
        device: "null".into(),
    };
    let (handle, inbox) = border(info, settings);
    let (log, now) = (Log::default(), Arc::new(Mutex::new(Instant::now())));
    let waits = Arc::<AtomicBool>::default();
    let runner = Recorder {
        inner: NullRunner::new(depth, token),
        requests: vec![0; 4],
        log: log.clone(),
        now: now.clone(),
        waits: waits.clone(),
        is_waiting: false,
        rows: VecDeque::new(),
        watched: inbox.shared.clone(),
    };
    let clock = Box::new(move || *now.lock().unwrap());
    let parts = Parts { runner: Box::new(runner), inbox, clock, drafts: None, reaper: None };
    Bench { handle, waits, step_loop: StepLoop::new(parts), log, streams: Vec::new() }
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
        ..SchedulerSettings::default()
    };
    let mut bench = bench(1, 5, 200, settings);
    bench.submit(request(1, 30, 20));
    bench.submit(request(2, 400, 5));
    let log = bench.drain();
    let late = &log[4..9];
    let rows = |step: &[(u64, usize)]| step.iter().map(|&(_, rows)| rows).sum::<usize>();
    assert!(late.iter().all(|step| (16..=21).contains(&rows(step))), "1 ms a row: {late:?}");
}

/// Models on one CPU take turns: the steps of others are neither slow ones of this one nor a hang.
#[test]
fn what_others_take_is_no_time_of_a_step() {
    let chunks = |waits: bool| {
        let max_step = Some(Duration::from_millis(10));
        let mut bench = bench(1, 5, 100, SchedulerSettings { max_step, ..Default::default() });
        bench.waits.store(waits, Relaxed);
        bench.submit(request(1, 300, 5));
        let log = bench.drain();
        (log, bench.handle.stats().step_time.sum_s)
    };
    assert_eq!(chunks(true), chunks(false));
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
    // The other choices take all of the prompt but its last token, in a copy of the last block.
    assert_eq!(log[1].iter().filter(|&&(n, _)| n == 2).count(), 3);
    let rows: usize = log.iter().flatten().filter(|&&(n, _)| n == 2).map(|&(_, r)| r).sum();
    assert_eq!(rows, (64 + 1) + 2 * (1 + 1));
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

#[test]
fn a_stopped_choice_that_was_preempted_is_not_recomputed() {
    for depth in [1, 2] {
        let mut bench = bench(depth, 5, 6, SchedulerSettings::default());
        bench.submit(request(1, 30, 60));
        bench.submit(request(2, 30, 60));
        while bench.handle.stats().preemptions == 0 {
            bench.turns(1);
        }
        bench.streams[1].stop(0);
        bench.log.lock().unwrap().clear();
        bench.turns(1);
        let events: Vec<_> = std::iter::from_fn(|| bench.streams[1].try_next()).collect();
        let last = Event::Finished { choice: 0, reason: FinishReason::Stopped };
        assert_eq!(events.last(), Some(&last));
        let stats = bench.handle.stats();
        assert_eq!((stats.waiting, stats.waiting_tokens), (0, 0));
        assert!(bench.drain().iter().flatten().all(|&(number, _)| number == 1));
        let stats = bench.handle.stats();
        assert_eq!((stats.finished_stop, stats.finished_length), (1, 1));
        assert_eq!(stats.blocks_used, 0);
    }
}

#[test]
fn blocks_that_slid_out_are_given_back_before_anybody_is_preempted() {
    // Step 0 takes all four blocks of the window group: one for the older, three for the younger,
    // which then needs the last of them only. The older needs a second one in step 1.
    let groups = [(KvGroupKind::Full, 100), (KvGroupKind::Window(16), 4)];
    let mut bench = bench_of(1, 5, &groups, SchedulerSettings::default());
    bench.submit(request(1, 16, 20));
    bench.submit(request(2, 48, 20));
    let log = bench.drain();
    assert_eq!(log[0], [(1, 16), (2, 48)]);
    assert_eq!(log[1], [(1, 1), (2, 1)]);
    assert_eq!(bench.handle.stats().preemptions, 0);
}

#[test]
fn who_does_not_fit_is_looked_up_once() {
    // Ten of twenty blocks are free, so it is worth looking, but a prompt of thirteen does not fit.
    let mut bench = bench(1, 5, 20, SchedulerSettings::default());
    bench.submit(request(1, 150, 90));
    bench.turns(1);
    for number in 2..32 {
        bench.submit(request(number, 200, 5));
    }
    bench.turns(40);
    let stats = bench.handle.stats();
    assert_eq!((stats.running, stats.prefix_lookups), (1, 31));
    bench.drain();
    assert_eq!(bench.handle.stats().finished_length, 31);
}

#[test]
fn nobody_is_looked_up_while_no_block_is_to_spare() {
    let mut bench = bench(1, 5, 20, SchedulerSettings::default());
    bench.submit(request(1, 300, 10));
    bench.submit(request(2, 10, 5));
    bench.submit(request(3, 10, 5));
    // The prompt takes five steps; the other two must leave two blocks for those that run.
    bench.turns(10);
    let stats = bench.handle.stats();
    assert_eq!((stats.running, stats.prefix_lookups), (1, 1));
    bench.drain();
    assert_eq!(bench.handle.stats().finished_length, 3);
}

#[test]
fn blocks_written_by_decode_are_found_once_their_sequence_has_ended() {
    for depth in [1, 2] {
        let mut bench = bench(depth, 5, 100, SchedulerSettings::default());
        // At depth 2 the last block's tokens are known only after its last launch.
        bench.submit(request(1, 10, 39));
        bench.drain();
        let Segment::Tokens(mut tokens) = request(1, 10, 39).input.remove(0);
        tokens.extend([5; 40]);
        bench.submit(Request { input: vec![Segment::Tokens(tokens)], ..request(2, 50, 1) });
        bench.drain();
        assert_eq!(bench.handle.stats().prefix_hit_tokens, 48, "depth {depth}");
    }
}

#[test]
fn evictable_blocks_are_free_ones_with_content() {
    let mut bench = bench(1, 5, 20, SchedulerSettings::default());
    bench.submit(request(1, 40, 5));
    bench.turns(2);
    let stats = bench.handle.stats();
    assert_eq!((stats.blocks_used, stats.blocks_evictable), (3, 0));
    bench.drain();
    let stats = bench.handle.stats();
    assert_eq!((stats.blocks_used, stats.blocks_evictable), (0, 3), "the last is not full");
}

fn with_penalty(request: Request) -> Request {
    let sampler = SamplerParams { frequency_penalty: 0.5, ..request.sampler.clone() };
    Request { sampler, ..request }
}

#[test]
fn who_is_preempted_while_its_first_step_runs_gets_its_token_buffers_back() {
    let mut bench = bench(2, 5, 6, SchedulerSettings::default());
    bench.submit(request(1, 30, 10));
    bench.turns(2);
    // Takes the other four blocks in the step before the older one needs its third.
    bench.submit(with_penalty(request(2, 63, 10)));
    bench.turns(1);
    let id = SeqId { group: 1, choice: 0 };
    let buffers = |bench: &Bench| bench.step_loop.scheduler.sequences[id].count_buffers.is_some();
    assert!(!buffers(&bench), "they are in its first step");
    bench.turns(1);
    assert_eq!(bench.handle.stats().preemptions, 1);
    assert!(buffers(&bench));
    bench.drain();
    assert_eq!(bench.handle.stats().finished_length, 2);
}

#[test]
fn what_a_step_still_held_of_an_ended_request_is_dropped_elsewhere() {
    let mut bench = bench(1, 5, 100, SchedulerSettings::default());
    let (reaper, leftovers) = sync_channel(10);
    bench.step_loop.reaper = Some(reaper);
    bench.submit(with_penalty(request(1, 30, 1)));
    bench.submit(with_penalty(request(2, 20, 3)));
    bench.drain();
    let leftovers: Vec<_> = leftovers.try_iter().collect();
    let inits: Vec<_> = leftovers
        .iter()
        .filter_map(|leftover| match leftover {
            Leftover::SlotInit(init) => Some(init.params.seed),
            Leftover::Group(_) => None,
        })
        .collect();
    assert_eq!((leftovers.len(), inits), (3, vec![1]));
}

/// A prompt that goes on behind the first `shared` tokens of `request(1, …)` by itself.
fn going_on(number: u64, shared: u32, len: u32) -> Request {
    let Segment::Tokens(mut tokens) = request(1, shared, 1).input.remove(0);
    tokens.extend((shared..len).map(|index| 900 - index - number as u32));
    Request { input: vec![Segment::Tokens(tokens)], ..request(number, len, 3) }
}

#[test]
fn a_prefix_is_shared_to_the_token() {
    for depth in [1, 2] {
        let mut bench = bench(depth, 5, 100, SchedulerSettings::default());
        bench.submit(request(1, 42, 20));
        bench.turns(2);
        // While the first runs: a block of 16, and what its second or its unfinished third begin with.
        bench.submit(going_on(2, 27, 40));
        bench.submit(going_on(3, 42, 60));
        bench.submit(request(1, 42, 3));
        bench.turns(1);
        let hits = 27 + 42 + 41;
        assert_eq!(bench.handle.stats().prefix_hit_tokens, hits, "depth {depth}");
        assert_eq!(bench.log.lock().unwrap().last().unwrap()[1..], [(2, 13), (3, 18), (1, 1)]);
        bench.drain();
        // Too few to be worth a copy: seven tokens of the third block.
        bench.submit(going_on(4, 39, 50));
        // Behind an answer that has ended, up to its last token: that one was never computed.
        let Segment::Tokens(mut tokens) = request(1, 42, 1).input.remove(0);
        tokens.extend([5; 20]);
        tokens.extend([7; 9]);
        bench.submit(Request { input: vec![Segment::Tokens(tokens)], ..request(5, 71, 1) });
        bench.drain();
        assert_eq!(bench.handle.stats().prefix_hit_tokens, hits + 32 + 61, "depth {depth}");
        let stats = bench.handle.stats();
        assert_eq!((stats.finished_length, stats.blocks_used), (6, 0));
    }
}

#[test]
fn a_sequence_alone_takes_the_block_that_it_copied_when_there_is_no_other() {
    for (num_blocks, len, computed) in [(4, 60, 60 - 28), (2, 29, 29 - 16)] {
        let mut bench = bench(1, 5, num_blocks, SchedulerSettings::default());
        // Leaves a block of 16 and one of 12 tokens.
        bench.submit(request(1, 28, 1));
        bench.drain();
        // Of four blocks one is free for the copy, and later the copied one; of two there is none.
        bench.submit(going_on(2, 28, len));
        let log = bench.drain();
        let rows = log.iter().flatten().filter(|&&(number, _)| number == 2);
        let rows: usize = rows.map(|&(_, rows)| rows).sum();
        assert_eq!(rows, computed + 2, "of {num_blocks} blocks");
        let stats = bench.handle.stats();
        assert_eq!((stats.finished_length, stats.blocks_used), (2, 0));
    }
}
