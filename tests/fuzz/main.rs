//! Fuzzing without a fuzzer: each target of `pagoda_tests::fuzz` over a fixed number of inputs that
//! follow from a seed, so that every run on any machine tries the same ones.
//!
//! tests/fuzz/README.md says how a finding becomes a file of the corpus, and how cargo-fuzz goes on
//! by coverage from there.

#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "test code")]

mod drive;
mod mutate;

use std::alloc::System;
use std::panic::AssertUnwindSafe;

use cap::Cap;
use drive::Drive;
use pagoda_tests::fuzz::{TARGETS, Target, find};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Where every run begins.
const SEED: u64 = 20_261_122;

/// Inputs of each target: together they take some seconds of a debug build.
const COUNTS: [(&str, u32); 13] = [
    ("requests", 5000),
    ("connections", 800),
    ("admin", 10_000),
    ("settings", 2500),
    ("hub", 10_000),
    ("config", 4000),
    ("safetensors", 5000),
    ("shards", 4000),
    ("quantized", 4000),
    ("tokenizer", 3000),
    ("vocabulary", 1500),
    ("template", 6000),
    ("grammar", 4000),
];

fn count(name: &str) -> u32 {
    COUNTS.iter().find(|(known, _)| *known == name).expect("a count").1
}

fn drive(name: &str) {
    Drive { target: find(name), memory: &MEMORY, seed: SEED }.run(count(name));
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            drive(stringify!($name));
        })*

        /// Names of the tests above.
        const TESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    requests connections admin settings hub config safetensors shards quantized tokenizer
    vocabulary template grammar
}

#[test]
fn every_target_has_a_test_and_one_for_a_fuzzer() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, TESTS);
    let manifest = include_str!("Cargo.toml");
    for name in names {
        assert!(count(name) > 0);
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        let text = std::fs::read_to_string(folder.join(format!("{name}.rs"))).expect("a target");
        assert!(text.contains(&format!("once(\"{name}\", input)")), "{name}");
    }
}

#[test]
fn a_planted_fault_is_found_and_its_input_stays() {
    static PLANTED: Target = Target {
        name: "planted",
        run: |input| {
            assert!(!input.windows(2).any(|two| two == b"[["), "planted");
            input.len().to_string()
        },
        seeds: || vec![b"{\"a\": 1}".to_vec()],
        words: &[],
    };
    let drive = Drive { target: &PLANTED, memory: &MEMORY, seed: SEED };
    let found = std::panic::catch_unwind(AssertUnwindSafe(|| drive.run(20_000)));
    assert!(found.is_err());
    let input = std::fs::read(drive.file()).expect("its input stays");
    assert!(input.windows(2).any(|two| two == b"[["));
    std::fs::remove_file(drive.file()).expect("a file");
}

#[test]
#[ignore = "minutes: other seeds and many more inputs of every target"]
fn long_many_more_inputs() {
    for seed in (SEED + 1..).take(LONG_ROUNDS) {
        for target in &TARGETS {
            Drive { target, memory: &MEMORY, seed }.run(4 * count(target.name));
        }
    }
}

/// Rounds of the long form, each from a seed of its own.
const LONG_ROUNDS: usize = 3;
