//! The engine thread allocates nothing in a step after warm-up, and frees nothing.
//!
//! The loop runs on this thread, so every allocation counted is its own: prompts, decodes, block
//! keys, preemptions, requests that end and others that take their seats. Submitting comes before:
//! it allocates on the submitting thread by design. One test alone in its process.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::alloc::System;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

use pagoda_engine::handle::{EngineStats, border};
use pagoda_engine::model::info::InstanceInfo;
use pagoda_engine::request::Request;
use pagoda_engine::runner::NullRunner;
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::{Parts, StepLoop, Turn};
use pagoda_tests::simulation::workload::instance;
use pagoda_tests::steady_load::request;

/// Tokens of the null runner's instance.
const VOCAB: u32 = 60;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What 1,000 turns of the loop allocate after 250 turns, and the engine's numbers before and after.
fn count(
    info: InstanceInfo,
    requests: impl Iterator<Item = Request>,
) -> (Stats, EngineStats, EngineStats) {
    let depth = info.depth as usize;
    let (handle, inbox) = border(info, SchedulerSettings::default());
    // What is left of requests piles up here: none of it may be freed by the loop.
    let (reaper, _leftovers) = sync_channel(10_000);
    let mut step_loop = StepLoop::new(Parts {
        runner: Box::new(NullRunner::new(depth, 3)),
        inbox,
        clock: Box::new(Instant::now),
        drafts: None,
        reaper: Some(reaper),
    });
    let _streams: Vec<_> = requests.map(|request| handle.submit(request).unwrap()).collect();
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
    (region.change(), before, handle.stats())
}

fn assert_nothing(counted: Stats) {
    let Stats { allocations, reallocations, deallocations, .. } = counted;
    assert_eq!((allocations, reallocations, deallocations), (0, 0, 0), "{counted:?}");
}

fn seats_change_hands() {
    for depth in [1, 2] {
        let mut info = instance(depth, 32, 220, (40, 160));
        info.max_num_seqs = 32;
        info.max_num_batched_tokens = 256;
        info.max_logits_rows = 64;
        let (counted, before, after) = count(info, (0..300).map(|number| request(number, VOCAB)));
        assert_nothing(counted);
        // It really happened: prompts, ends and preemptions.
        assert!(after.prompt_tokens > before.prompt_tokens + 2_000, "{after:?}");
        assert!(after.finished_length > before.finished_length + 50, "{after:?}");
        assert!(after.preemptions > before.preemptions + 10, "{after:?}");
        assert!(after.prefix_hit_tokens > before.prefix_hit_tokens, "{after:?}");
    }
}

fn tables_grow_all_the_time() {
    for depth in [1, 2] {
        let mut info = instance(depth, 16, 4_000, (20_000, 4_000));
        info.max_num_seqs = 16;
        let long = (0..16).map(|number| {
            let mut request = request(number, VOCAB);
            (request.n, request.stop.max_tokens) = (1, 2_000);
            request
        });
        let (counted, before, after) = count(info, long);
        assert_nothing(counted);
        assert_eq!((after.running, after.finished_length), (16, 0), "{after:?}");
        assert!(after.blocks_used > 3 * before.blocks_used, "{before:?} {after:?}");
    }
}

#[test]
fn a_thousand_steps_allocate_nothing() {
    seats_change_hands();
    tables_grow_all_the_time();
}
