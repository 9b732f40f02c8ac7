//! Goldens: the loader, the decoder and the CPU kernels in float32 against transformers, and
//! against other decoders where it lacks a family.
//!
//! Every target log-probability and every top-20 list of tests/goldens within 0.001, for blocks of
//! 16, 32 and 64, prompts whole, in odd chunks, with a decode tail, and many prompts in one step.
//! Then each planted fault must move some value by at least 0.05: a fault is a changed spec, batch
//! or weight, never a switch in the product.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "goldens/faults.rs"]
mod faults;
#[path = "goldens/rewritten.rs"]
mod rewritten;

use std::collections::BTreeMap;

use anyhow::Context;
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::config::read_config;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::load_spec;
use pagoda_engine::model::spec::ModelSpec;
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource};
use pagoda_kernels::cpu::{CpuDevice, CpuOptions};
use pagoda_kernels::dtype::DType;
use pagoda_tests::golden::{CASES, Golden, computed_by, folder};
use pagoda_tests::prompts::PromptRun;

/// Largest distance from transformers.
const TOLERANCE: f32 = 0.001;
/// Least distance that a planted fault must cause.
const FAULT: f32 = 0.05;

/// One case, ready to be loaded in any way.
struct Case {
    golden: Golden,
    checkpoint: Checkpoint,
    spec: ModelSpec,
}

impl Case {
    fn open(name: &str) -> anyhow::Result<Self> {
        let golden = Golden::read(name)?;
        let checkpoint = Checkpoint::open(&ModelSource::Folder(folder(name)))?;
        let spec = ModelSpec::plan(&checkpoint.config, golden.max_model_len);
        Ok(Case { golden, checkpoint, spec })
    }

    fn load(
        self,
        dtype: DType,
        block_size: usize,
        threads: usize,
    ) -> anyhow::Result<(Golden, LoadedModel)> {
        let device = CpuDevice::new(CpuOptions { block_size, threads, ..CpuOptions::default() })?;
        // As many sequences as rows, so that every row of a step may have logits.
        let options = LoadOptions {
            dtype: Some(dtype),
            kv_dtype: Some(DType::F32.into()),
            max_model_len: Some(self.golden.max_model_len),
            max_num_seqs: Some(2000),
            max_num_batched_tokens: Some(2000),
            max_logprobs: u32::MAX,
            kv: KvBudget::Bytes(64 << 20),
            ..LoadOptions::default()
        };
        let loaded = load_spec(&device, self.checkpoint, &self.spec, &options, &|_| ())?;
        Ok((self.golden, loaded))
    }
}

/// The distance from the golden when the first `len` tokens run in these chunks.
fn distance(
    golden: &Golden,
    model: &mut LoadedModel,
    len: usize,
    chunk: &dyn Fn(usize) -> usize,
    last_position_shift: i32,
) -> anyhow::Result<f32> {
    let lengths = golden.lengths();
    let prompts = vec![&golden.tokens[..len]];
    let run = PromptRun { prompts, chunk, lengths: &lengths, last_position_shift };
    let values = run.run(model.runner.as_mut(), &model.info)?;
    anyhow::ensure!(values[0].targets.len() == len);
    golden.distance(&values[0])
}

/// Runs one case at one block size, on so many threads, in every way and returns the largest distance.
fn check_case(name: &str, block_size: usize, threads: usize) -> anyhow::Result<f32> {
    let (golden, mut model) = Case::open(name)?.load(DType::F32, block_size, threads)?;
    let whole = golden.tokens.len();
    let mut largest = distance(&golden, &mut model, whole, &|_| whole, 0)?;

    // Odd chunks, of which none is a multiple of a block, then forty tokens one by one.
    let odd = |done: usize| {
        let sizes = [1, 7, 97, 33, 130, 15, 241];
        if done + 40 >= whole { 1 } else { sizes[done % 7].min(whole - 40 - done) }
    };
    largest = largest.max(distance(&golden, &mut model, whole, &odd, 0)?);

    // All the shorter lengths as prompts of their own, side by side in each step.
    let lengths: Vec<usize> = golden.lengths().into_iter().filter(|len| *len < whole).collect();
    let prompts = lengths.iter().map(|len| &golden.tokens[..*len]).collect();
    let run = PromptRun { prompts, chunk: &|_| 53, lengths: &lengths, last_position_shift: 0 };
    for (len, values) in lengths.iter().zip(run.run(model.runner.as_mut(), &model.info)?) {
        let at_end = values.tops.contains_key(len).then_some(values);
        let values = at_end.with_context(|| format!("length {len} did not come to its end"))?;
        largest = largest.max(golden.distance(&values)?);
    }
    Ok(largest)
}

#[test]
fn every_value_is_within_a_thousandth_of_transformers() {
    for case in CASES {
        for (block_size, threads) in [(16, 2), (32, 1), (64, 1)] {
            let largest =
                check_case(case, block_size, threads).unwrap_or_else(|e| panic!("{case}: {e:#}"));
            println!("{case:18} blocks of {block_size}: {largest:.6}");
            assert!(largest <= TOLERANCE, "{case}, blocks of {block_size}: {largest}");
        }
    }
}

/// The distance of the first tokens, the last of them alone in its step, so that its query meets
/// keys of the steps before. Long enough for windows, for every scaling and for growing queries to
/// show; one of the lengths whose top list is known, so that the last row counts.
fn distance_of_the_first(case: Case, last_position_shift: i32) -> f32 {
    let grown = case.checkpoint.config.rope.query_log_base.is_some();
    let len = if grown { 2000 } else { 300 };
    let (golden, mut model) = case.load(DType::F32, 16, 1).unwrap();
    let chunk = |done: usize| if done == 0 { len - 1 } else { 1 };
    distance(&golden, &mut model, len, &chunk, last_position_shift).unwrap()
}

#[test]
fn each_planted_fault_moves_a_value() {
    let mut seen = BTreeMap::new();
    for name in CASES {
        let sound = distance_of_the_first(Case::open(name).unwrap(), 0);
        assert!(sound <= TOLERANCE, "{name} without a fault: {sound}");
        for fault in faults::FAULTS {
            let mut case = Case::open(name).unwrap();
            if !(fault.plant)(&mut case) {
                continue;
            }
            let moved = distance_of_the_first(case, fault.last_position_shift);
            assert!(moved >= FAULT, "{name}: {} moves no value by more than {moved}", fault.name);
            let least = seen.entry(fault.name).or_insert(f32::INFINITY);
            *least = moved.min(*least);
        }
    }
    for fault in faults::FAULTS {
        let least = seen.get(fault.name).unwrap_or_else(|| panic!("nowhere: {}", fault.name));
        println!("{:32} moves a value by {least:.2} at least", fault.name);
    }
}

/// The goldens' weights are exact in f16 too (but for the smallest), so only a kernel that rounds
/// weights or rows to bf16 on the way gets far from them.
#[test]
fn f16_weights_are_widened_and_never_become_bf16() {
    for name in ["llama2", "qwen3", "qwen3_moe"] {
        let measure = |dtype| {
            let (golden, mut model) = Case::open(name).unwrap().load(dtype, 32, 1).unwrap();
            distance(&golden, &mut model, 300, &|_| 300, 0).unwrap()
        };
        let (half, brain) = (measure(DType::F16), measure(DType::Bf16));
        println!("{name}: f16 {half:.5}, bf16 {brain:.5}");
        assert!(half <= 2.0 * TOLERANCE && brain >= 0.02, "{name}: f16 {half}, bf16 {brain}");
    }
}

#[test]
fn both_spellings_of_a_configuration_make_one_model() {
    for case in CASES {
        if computed_by(case) != "transformers" {
            continue; // published before there were two
        }
        let [new, old] = ["config.json", "config_v4.json"].map(|file| {
            let bytes = std::fs::read(folder(case).join(file)).unwrap();
            format!("{:?}", ModelSpec::plan(&read_config(file, &bytes).unwrap(), 2048))
        });
        assert_eq!(new, old, "{case}");
    }
}
