//! The engine thread allocates nothing in a step after warm-up.
//!
//! The loop runs on this thread, so every allocation counted is its own: prompts, decodes, block
//! keys, preemptions, requests that end and others that take their seats. Submitting comes before:
//! it allocates on the submitting thread by design. One test alone in its process.

use std::alloc::System;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use pagoda_engine::handle::border;
use pagoda_engine::request::{Request, SamplerParams, Segment, StopParams, Tenant};
use pagoda_engine::runner::NullRunner;
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::{Parts, StepLoop, Turn};
use pagoda_tests::simulation::workload::instance;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn request(number: u32) -> Request {
    // Half of the prompts share a prefix; lengths differ, so that seats change hands at all times.
    let shared = if number.is_multiple_of(2) { 64 } else { 0 };
    let tokens = (0..shared).chain((0..50 + number % 70).map(|i| (i * 31 + number) % 60));
    let penalties = number.is_multiple_of(5);
    Request {
        id: "r".into(),
        input: vec![Segment::Tokens(tokens.map(|token| token % 60).collect())],
        sampler: SamplerParams {
            frequency_penalty: if penalties { 0.5 } else { 0.0 },
            num_logprobs: number.is_multiple_of(3).then_some(2),
            ..SamplerParams::default()
        },
        stop: StopParams {
            max_tokens: 150 + number % 90,
            min_tokens: 0,
            eos_token_ids: vec![],
            stop_token_ids: vec![],
        },
        n: 1 + u32::from(number.is_multiple_of(10)),
        prompt_logprobs: number.is_multiple_of(7).then_some(1),
        tenant: Tenant {
            id: format!("tenant-{}", number % 3).as_str().into(),
            cache_salt: Default::default(),
        },
        priority: 0,
    }
}

#[test]
fn a_thousand_steps_allocate_nothing() {
    for depth in [1, 2] {
        let mut info = instance(depth, 32, 220, (40, 160));
        info.max_num_seqs = 32;
        info.max_num_batched_tokens = 256;
        info.max_logits_rows = 64;
        let (handle, inbox) = border(info, SchedulerSettings::default());
        let mut step_loop = StepLoop::new(Parts {
            runner: Box::new(NullRunner::new(depth as usize, 3)),
            inbox,
            clock: Box::new(Instant::now),
            drafts: None,
            reaper: None,
        });
        let streams: Vec<_> = (0..300).map(|n| handle.submit(request(n)).unwrap()).collect();
        let warm_up = Region::new(ALLOCATOR);
        for _ in 0..250 {
            assert_eq!(step_loop.turn().unwrap(), Turn::Stepped);
        }
        assert!(warm_up.change().allocations > 0, "the counter counts");
        let before = handle.stats();
        let region = Region::new(ALLOCATOR);
        for _ in 0..1_000 {
            assert_eq!(step_loop.turn().unwrap(), Turn::Stepped);
        }
        let counted = region.change();
        let after = handle.stats();
        assert_eq!((counted.allocations, counted.reallocations), (0, 0), "{counted:?}");
        // It really happened: prompts, ends and preemptions.
        assert!(after.prompt_tokens > before.prompt_tokens + 2_000, "{after:?}");
        assert!(after.finished_length > before.finished_length + 50, "{after:?}");
        assert!(after.preemptions > before.preemptions + 10, "{after:?}");
        assert!(after.prefix_hit_tokens > before.prefix_hit_tokens, "{after:?}");
        drop(streams);
    }
}
