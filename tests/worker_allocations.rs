//! The CPU's workers allocate nothing in a step after warm-up, and neither does the loop over them.
//!
//! The step loop runs on this thread over the real team, so the counter of the whole process sees
//! both. One test alone in its process; `allocations.rs` has more steps over a runner that computes
//! nothing.

#![allow(clippy::panic, clippy::unwrap_used, reason = "test code")]

use std::alloc::System;
use std::path::PathBuf;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use pagoda_engine::handle::border;
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::{LoadOptions, ModelSource, load};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::{Parts, StepLoop, Turn};
use pagoda_kernels::dtype::DType;
use pagoda_tests::steady_load::request;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const THREADS: u32 = 2;
const WARM_UP: usize = 250;
const STEPS: usize = 1_000;

/// Between them: grouped heads, a window, experts. With the tokens that the cache has room for, too
/// few for twelve sequences at their longest: some are preempted.
const MODELS: [(&str, u64); 3] = [("qwen3", 2000), ("qwen2_window", 1300), ("qwen3_moe", 2000)];

fn options(source: &ModelSource, cache_tokens: u64) -> LoadOptions {
    let config = Checkpoint::open(source).unwrap().config;
    let token_bytes =
        2 * config.num_layers * config.heads.num_kv * config.heads.head_dim * DType::Bf16.bytes();
    LoadOptions {
        dtype: Some(DType::Bf16),
        max_model_len: Some(512),
        max_num_seqs: Some(12),
        max_num_batched_tokens: Some(96),
        kv: KvBudget::Bytes(cache_tokens * token_bytes as u64),
        threads: Some(THREADS),
        block_size: Some(16),
        ..LoadOptions::default()
    }
}

/// Gives how often a sequence was preempted.
fn thousand_steps_of(model: &str, cache_tokens: u64) -> u64 {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens").join(model);
    let source = ModelSource::Folder(folder);
    let loaded = load(&source, &options(&source, cache_tokens), &|_| {}).unwrap();
    let vocab = loaded.info.vocab;
    let (handle, inbox) = border(loaded.info, SchedulerSettings::default());
    let mut step_loop = StepLoop::new(Parts {
        runner: loaded.runner,
        inbox,
        clock: Box::new(Instant::now),
        drafts: None,
        reaper: None,
    });
    let streams: Vec<_> = (0..150).map(|n| handle.submit(request(n, vocab)).unwrap()).collect();
    for _ in 0..WARM_UP {
        assert_eq!(step_loop.turn().unwrap(), Turn::Stepped);
    }
    let before = handle.stats();
    let region = Region::new(ALLOCATOR);
    for _ in 0..STEPS {
        assert_eq!(step_loop.turn().unwrap(), Turn::Stepped);
    }
    let counted = region.change();
    let after = handle.stats();
    assert_eq!((counted.allocations, counted.reallocations), (0, 0), "{model}: {counted:?}");
    assert!(after.prompt_tokens > before.prompt_tokens + 1_000, "{model}: {after:?}");
    assert!(after.finished_length > before.finished_length + 10, "{model}: {after:?}");
    drop(streams);
    after.preemptions - before.preemptions
}

#[test]
fn a_thousand_steps_of_the_team_allocate_nothing() {
    let counts = Region::new(ALLOCATOR);
    let preemptions: u64 =
        MODELS.iter().map(|&(model, cache_tokens)| thousand_steps_of(model, cache_tokens)).sum();
    assert!(preemptions > 5, "{preemptions}");
    assert!(counts.change().allocations > 0, "the counter counts");
}
