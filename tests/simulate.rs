//! The step loop against a model whose outcome has a closed form: many seeds, both depths, two KV
//! groups, drafts and rollback, cancels, full pools, preemptions, choices, tenants.
//!
//! A failing seed is printed with the smallest workload found that still fails.
//! `SIMULATE_SEED=n` runs one seed alone.

#![allow(clippy::panic, clippy::print_stderr, reason = "test code")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_tests::simulation::driver::{Outcome, run};
use pagoda_tests::simulation::hash_runner::Fault;
use pagoda_tests::simulation::workload::{Workload, instance};

const ASKS: u32 = 80;

fn fails(workload: &Workload, fault: Option<Fault>) -> bool {
    catch_unwind(AssertUnwindSafe(|| run(workload, fault))).is_err()
}

fn run_or_shrink(seed: u64) -> Outcome {
    let workload = Workload::from_seed(seed, ASKS);
    match catch_unwind(AssertUnwindSafe(|| run(&workload, None))) {
        Ok(outcome) => outcome,
        Err(_) => {
            let smallest = workload.shrink(|smaller| fails(smaller, None));
            eprintln!("seed {seed} fails; still with {} requests:", smallest.asks.len());
            eprintln!("{smallest:#?}");
            run(&smallest, None);
            panic!("seed {seed} fails, but its smallest workload does not when repeated");
        }
    }
}

fn add(sum: &mut Outcome, one: &Outcome) {
    sum.steps += one.steps;
    sum.busy += one.busy;
    sum.left_queued += one.left_queued;
    sum.left_prefill += one.left_prefill;
    sum.left_decode += one.left_decode;
    sum.pending_rows += one.pending_rows;
    sum.poisoned += one.poisoned;
    sum.copied += one.copied;
    sum.choices += one.choices;
    sum.stopped += one.stopped;
    sum.stats.preemptions += one.stats.preemptions;
    sum.stats.prefix_hit_tokens += one.stats.prefix_hit_tokens;
    sum.stats.prefix_waits += one.stats.prefix_waits;
    sum.stats.draft_tokens += one.stats.draft_tokens;
    sum.stats.draft_tokens_accepted += one.stats.draft_tokens_accepted;
    sum.stats.cancelled += one.stats.cancelled;
    sum.stats.discarded += one.stats.discarded;
    sum.stats.generation_tokens += one.stats.generation_tokens;
    sum.stats.rows += one.stats.rows;
    sum.stats.prefix_lookups += one.stats.prefix_lookups;
}

/// Runs seeds from `first` on until there were so many steps; gives how many seeds.
fn run_seeds(first: u64, steps: u64) -> (u64, Outcome) {
    let mut sum = Outcome::default();
    let mut seed = first;
    while sum.steps < steps {
        add(&mut sum, &run_or_shrink(seed));
        seed += 1;
    }
    eprintln!("{} seeds, {} steps: {sum:?}", seed - first, sum.steps);
    (seed - first, sum)
}

/// A million steps of seeds that the short test never sees.
fn a_million_steps_equal_the_closed_form(first_seed: u64) {
    let (seeds, sum) = run_seeds(first_seed, 1_000_000);
    assert!(seeds >= 500, "{seeds}");
    assert!(sum.stats.preemptions > 5_000 && sum.stats.draft_tokens_accepted > 25_000);
}

#[test]
#[ignore = "minutes: tests/run --long"]
fn long_first_million_of_steps() {
    a_million_steps_equal_the_closed_form(1 << 32);
}

#[test]
#[ignore = "minutes: tests/run --long"]
fn long_second_million_of_steps() {
    a_million_steps_equal_the_closed_form(2 << 32);
}

#[test]
#[ignore = "minutes: tests/run --long"]
fn long_third_million_of_steps() {
    a_million_steps_equal_the_closed_form(3 << 32);
}

#[test]
fn two_hundred_thousand_steps_equal_the_closed_form() {
    if let Some(seed) = std::env::var("SIMULATE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        eprintln!("{:#?}", run_or_shrink(seed));
        return;
    }
    let (seeds, sum) = run_seeds(0, 200_000);
    // It really happened.
    assert!(seeds >= 100, "{seeds}");
    assert!(sum.choices > 5_000);
    assert!(sum.stopped > 200);
    assert!(sum.busy > 100);
    assert!(sum.left_queued > 100 && sum.left_prefill > 100 && sum.left_decode > 100);
    assert!(sum.pending_rows > 10_000);
    assert!(sum.poisoned > 10_000);
    assert!(sum.copied > 2_000);
    let stats = &sum.stats;
    assert!(stats.preemptions > 1_000);
    assert!(stats.discarded > 1_000, "ended in one step and ran once more in the next");
    assert!(stats.prefix_hit_tokens > 50_000);
    assert!(stats.prefix_waits > 500);
    assert!(stats.draft_tokens_accepted > 5_000);
    assert!(stats.draft_tokens - stats.draft_tokens_accepted > 5_000, "rollbacks");
}

/// A defect that the simulation does not notice would make it worthless.
#[test]
fn planted_faults_are_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let faults = [
        Fault::SlotOffByOne,
        Fault::WindowTooShort,
        Fault::KeysWithoutSalt,
        Fault::RollbackForgotten,
        Fault::StalePendingToken,
        Fault::FreedTooEarly,
        Fault::DiscardForgotten,
        Fault::DecodeTakenForPrefill,
        Fault::CopyForgotten,
        Fault::CopyTooLate,
        Fault::SourceNotHeld,
    ];
    let caught = faults.map(|fault| {
        let seeds = 0..24_u64;
        let failing = seeds.filter(|&seed| fails(&Workload::from_seed(seed, 30), Some(fault)));
        (fault, failing.count())
    });
    drop(std::panic::take_hook());
    eprintln!("{caught:?}");
    for (fault, seeds) in caught {
        assert!(seeds >= 3, "{fault:?} was noticed by {seeds} of 24 seeds only");
    }
}

#[test]
fn sixteen_prompts_that_arrive_together_compute_what_they_share_once() {
    for depth in [1, 2] {
        let own = 40;
        let shared = shared_rows(depth, 16, |_| 0, own);
        let block = 32;
        let least = 1024 + 16 * own;
        assert!((least - 16 * block..=least + 16 * block).contains(&shared), "{shared} rows");
        // Each of another tenant shares none.
        assert_eq!(shared_rows(depth, 16, |number| number, own), 16 * (1024 + own));
    }
}

/// Rows computed for `num` prompts that share 1,024 tokens, `own` tokens each beside them.
fn shared_rows(depth: u32, num: u32, tenant: fn(u32) -> u32, own: u64) -> u64 {
    let mut workload = Workload::from_seed(0, num);
    workload.info = instance(depth, 32, 2_000, (100, 2_000));
    workload.info.max_num_seqs = 16;
    workload.info.max_num_batched_tokens = 512;
    workload.settings = SchedulerSettings::default();
    (workload.drafts, workload.decode_differs) = (false, false);
    for (number, ask) in (0..).zip(&mut workload.asks) {
        ask.prompt = (0..1024).map(|token| token % 50).collect();
        ask.prompt.extend((0..own as u32).map(|token| (number * 7 + token) % 50 + 1));
        ask.prompt[1024] = number;
        (ask.max_tokens, ask.n, ask.tenant) = (1, 1, tenant(number));
        (ask.turn, ask.leaves, ask.prompt_logprobs) = (0, None, None);
    }
    let outcome = run(&workload, None);
    assert_eq!(outcome.choices, u64::from(num));
    outcome.stats.rows
}

#[test]
fn shrinking_keeps_what_fails() {
    let workload = Workload::from_seed(1, 40);
    let long = |workload: &Workload| workload.asks.iter().any(|ask| ask.prompt.len() > 40);
    assert!(long(&workload));
    let smallest = workload.shrink(long);
    assert_eq!(smallest.asks.len(), 1);
    assert!(long(&smallest));
}
