//! The CUDA device under the host's emulation: whole models from the kernels that a GPU will run.
//!
//! Goldens of families that between them use every op, and the built-in model's answers against the
//! CPU's. Slow, so prompts are short; `tests/goldens.rs` has the long ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::path::PathBuf;

use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::{load_checkpoint, load_on};
use pagoda_engine::model::{LoadOptions, ModelSource};
use pagoda_kernels::cuda::{CudaDevice, CudaOptions};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;
use pagoda_tests::answers::{Answers, answers, demo_prompt, demo_text};
use pagoda_tests::golden::{Golden, folder};
use pagoda_tests::prompts::PromptRun;

/// Largest distance from transformers.
const TOLERANCE: f32 = 0.001;
/// Tokens of a golden: over a block, with a tail that is decoded.
const GOLDEN_LEN: usize = 70;

/// Compiled kernels are kept beside the test's own binary.
fn emulated(seed: u64) -> CudaDevice {
    let test = std::env::current_exe().unwrap();
    let folder: PathBuf = test.parent().unwrap().join("emulated-kernels");
    CudaDevice::emulated(&folder, seed)
}

fn golden_distance(case: &str, seed: u64) -> anyhow::Result<f32> {
    let golden = Golden::read(case)?;
    let checkpoint = Checkpoint::open(&ModelSource::Folder(folder(case)))?;
    let options = LoadOptions {
        dtype: Some(DType::F32),
        kv_dtype: Some(DType::F32.into()),
        max_model_len: Some(golden.max_model_len),
        max_num_seqs: Some(64),
        max_num_batched_tokens: Some(64),
        max_logprobs: u32::MAX,
        kv: KvBudget::Bytes(16 << 20),
        ..LoadOptions::default()
    };
    let mut model = load_on(&emulated(seed), checkpoint, &options, &|_| ())?;
    let lengths: Vec<usize> =
        golden.lengths().into_iter().filter(|len| *len <= GOLDEN_LEN).collect();
    let prompts = vec![&golden.tokens[..GOLDEN_LEN]];
    let chunk = |done: usize| if done < 64 { [33, 1, 30][done % 3] } else { 1 };
    let run = PromptRun { prompts, chunk: &chunk, lengths: &lengths, last_position_shift: 0 };
    let values = run.run(model.runner.as_mut(), &model.info)?;
    anyhow::ensure!(values[0].targets.len() == GOLDEN_LEN);
    golden.distance(&values[0])
}

#[test]
fn goldens_hold_on_the_emulated_device() {
    // Between them also: heads of 256, soft caps and norms behind (gemma2), two ropes (gemma3_nested),
    // pairs of neighbours in half of each head (glm4).
    let cases = ["qwen3", "qwen2_window", "qwen3_moe", "llama3", "gemma2", "gemma3_nested", "glm4"];
    for (seed, case) in cases.into_iter().enumerate() {
        let distance = golden_distance(case, seed as u64).unwrap();
        assert!(distance <= TOLERANCE, "{case}: {distance}");
    }
}

/// Log-probabilities of a golden's first tokens with quantized weights: on the CPU, and emulated.
fn quantized_distance(case: &str, quantization: Quantization) -> anyhow::Result<f32> {
    let golden = Golden::read(case)?;
    let options = LoadOptions {
        dtype: Some(DType::Bf16),
        kv_dtype: Some(DType::F32.into()),
        quantization: Some(quantization),
        max_model_len: Some(golden.max_model_len),
        max_num_seqs: Some(32),
        max_num_batched_tokens: Some(32),
        kv: KvBudget::Bytes(16 << 20),
        ..LoadOptions::default()
    };
    let open = || Checkpoint::open(&ModelSource::Folder(folder(case)));
    let models = [
        load_checkpoint(open()?, &options, &|_| ())?,
        load_on(&emulated(1), open()?, &options, &|_| ())?,
    ];
    let [cpu, gpu] = models.map(|mut model| {
        let prompts = vec![&golden.tokens[..24]];
        let chunk = |done: usize| if done < 20 { [19, 1][done % 2] } else { 1 };
        let run = PromptRun { prompts, chunk: &chunk, lengths: &[], last_position_shift: 0 };
        run.run(model.runner.as_mut(), &model.info).map(|mut values| values.remove(0).targets)
    });
    let (cpu, gpu) = (cpu?, gpu?);
    anyhow::ensure!(cpu.len() == 24 && gpu.len() == 24);
    let far = cpu.iter().zip(&gpu).map(|(cpu, gpu)| (cpu - gpu).abs()).fold(0.0, f32::max);
    anyhow::ensure!(far.is_finite());
    Ok(far)
}

#[test]
fn quantized_models_are_those_of_the_cpu() {
    // Of an element that lies between two steps, sums in another order may take the other one.
    for (case, quantization, most) in [
        ("qwen3", Quantization::Q8_0, 0.1),
        ("llama3", Quantization::Q4_0, 0.1),
        ("qwen3_moe", Quantization::Fp8, 0.05),
    ] {
        let distance = quantized_distance(case, quantization).unwrap();
        println!("{case} {quantization:?}: {distance}");
        assert!(distance <= most, "{case} {quantization:?}: {distance}");
    }
}

/// Prompts in the built-in model's template.
const QUESTIONS: [&str; 3] = ["What is 17 + 25?", "Sort 5, 3, 9, 1.", "你好"];

#[test]
fn the_demo_model_answers_as_on_the_cpu() {
    let options = |kv_dtype| LoadOptions {
        kv_dtype,
        max_model_len: Some(256),
        max_num_seqs: Some(4),
        max_num_batched_tokens: Some(48),
        kv: KvBudget::Bytes(4 << 20),
        ..LoadOptions::default()
    };
    let open = || Checkpoint::open(&ModelSource::Demo).unwrap();
    let text = demo_text(&open().files);
    let prompts = QUESTIONS.map(|question| demo_prompt(&text, question));
    for kv_dtype in [None, Some(KvFormat::Fp8)] {
        let options = options(kv_dtype);
        let on_cpu = answers(load_checkpoint(open(), &options, &|_| ()).unwrap(), &prompts, 12);
        for deterministic in [true, false] {
            let device = emulated(7).with_options(CudaOptions { deterministic });
            let loaded = load_on(&device, open(), &options, &|_| ()).unwrap();
            // Two steps in flight, those of decode from graphs.
            let how = (loaded.info.depth, loaded.runner.decode_equals_prefill());
            assert_eq!(how, (2, deterministic));
            let on_gpu = answers(loaded, &prompts, 12);
            assert_eq!(on_gpu, on_cpu, "deterministic: {deterministic}, {kv_dtype:?}");
        }
        assert!(on_cpu.iter().all(|tokens| tokens.len() > 2), "{on_cpu:?}");
    }
}

/// Tokens of a block of the emulated device's cache.
const BLOCK: usize = 64;

#[test]
fn answers_are_the_same_when_the_cache_is_too_small_for_all() {
    let case = "qwen3";
    let golden = Golden::read(case).unwrap();
    let open = || Checkpoint::open(&ModelSource::Folder(folder(case))).unwrap();
    let options = LoadOptions {
        dtype: Some(DType::F32),
        max_model_len: Some(2 * BLOCK as u32),
        max_num_seqs: Some(4),
        max_num_batched_tokens: Some(48),
        kv: KvBudget::Bytes(16 << 20),
        ..LoadOptions::default()
    };
    // Each answer begins in a sequence's first block and ends in its second.
    let prompts = [0, 1].map(|at| golden.tokens[at..at + BLOCK - 4].to_vec());
    let mut loaded = load_checkpoint(open(), &options, &|_| ()).unwrap();
    loaded.info.eos_token_ids.clear();
    let groups = loaded.info.groups.iter();
    let row_bytes = groups.map(|group| group.bytes_per_block / u64::from(loaded.info.block_size));
    let block_bytes = row_bytes.sum::<u64>() * BLOCK as u64;
    let on_cpu = answers(loaded, &prompts, 9);
    let options = LoadOptions { kv: KvBudget::Bytes(3 * block_bytes), ..options };
    for deterministic in [true, false] {
        let device = emulated(8).with_options(CudaOptions { deterministic });
        let mut loaded = load_on(&device, open(), &options, &|_| ()).unwrap();
        loaded.info.eos_token_ids.clear();
        let on_gpu = Answers::of(loaded, &prompts, 9);
        assert_eq!(on_gpu.tokens, on_cpu, "deterministic: {deterministic}");
        assert!(on_gpu.preemptions > 0, "all fitted");
    }
}
