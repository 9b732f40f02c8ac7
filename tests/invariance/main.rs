//! The same answer alone or in a crowd: the float bits of every log-probability of 64 mixed
//! requests equal those of each alone, per instruction set, for 1, 2 and 3 threads, f32 and bf16,
//! quantized weights, and an fp8 cache.
//!
//! The crowd runs in a cache that is far too small, in steps that are far too short, beside clients
//! that leave; the test asserts that preemptions, hits on blocks written by decode, hits that end
//! within a block, cancels in prefill and in decode, and every chunk size from 1 to 97 really happened.

#![allow(clippy::panic, clippy::unwrap_used, reason = "test code")]

mod crowd;
mod engine;
mod workload;

use std::path::PathBuf;

use pagoda_kernels::cpu::isa::Isa;
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_kernels::weight_format::Quantization;

use crowd::Crowd;
use engine::{Engine, Setup};
use workload::{Outcome, Request, Scale, chunk_sweep, first_turns, second_turn};

/// Checkpoints that between them have grouped heads, a window and experts.
///
/// With the tokens that the cramped cache has room for: a window keeps few, which leaves more to
/// the layers that keep all.
const MODELS: [(&str, u64); 3] = [("qwen3", 1100), ("qwen2_window", 700), ("qwen3_moe", 1100)];

/// Crowds that a slow or busy machine may need on top, before all hard cases have occurred.
const MORE_CROWDS_MAX: u32 = 6;

fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

/// How weights and the cache are stored.
#[derive(Clone, Copy)]
struct Formats {
    dtype: DType,
    quantization: Option<Quantization>,
    kv_format: KvFormat,
}

impl Formats {
    const fn plain(dtype: DType) -> Self {
        Formats { dtype, quantization: None, kv_format: KvFormat::Plain(dtype) }
    }
}

const F32: Formats = Formats::plain(DType::F32);
const BF16: Formats = Formats::plain(DType::Bf16);

/// Runs the crowd of each model for each thread count, and asserts that the hard cases occurred.
fn crowds_equal_alone(
    isa: Isa,
    formats: Formats,
    models: &[(&str, u64)],
    threads: &[u32],
    scale: &Scale,
) {
    let setup = |(model, cache_tokens): (&str, u64)| {
        let folder = checkpoint(model);
        let Formats { dtype, quantization, kv_format } = formats;
        Setup { folder, isa, dtype, quantization, kv_format, threads: 1, cache_tokens }
    };
    let mut crowd = Crowd::new(*scale);
    for &model in models {
        crowd_equals_alone(&mut crowd, &setup(model), threads);
    }
    // How often the cache is full when a request needs a block is up to timing.
    for _ in 0..MORE_CROWDS_MAX {
        if crowd.has_happened() {
            break;
        }
        crowd_equals_alone(&mut crowd, &setup(MODELS[0]), threads);
    }
    crowd.assert_it_happened();
}

/// One model's crowd, against the answers that each request gets alone.
fn crowd_equals_alone(crowd: &mut Crowd, setup: &Setup, threads: &[u32]) {
    let scale = crowd.scale;
    let alone = Engine::ample(setup);
    let firsts: Vec<(Request, Outcome)> =
        first_turns(alone.vocab(), &scale).into_iter().map(|r| alone.run(r)).collect();
    let seconds: Vec<(Request, Outcome)> = firsts
        .iter()
        .enumerate()
        .map(|(index, (request, outcome))| alone.run(second_turn(index, request, outcome)))
        .collect();
    let sweep: Vec<(Request, Outcome)> =
        chunk_sweep(alone.vocab(), &scale).into_iter().map(|r| alone.run(r)).collect();
    for &threads in threads {
        let engine = Engine::cramped(&Setup { threads, ..setup.clone() });
        crowd.run(&engine, &firsts, &seconds);
        for (request, expected) in &sweep {
            let (_, outcome) = engine.run(request.clone());
            outcome.assert_bits_equal(expected, &request.name);
        }
        engine.assert_chunk_sizes(scale.chunk_sizes);
    }
}

/// Worker counts of an instruction set whose whole proof is among the long ones.
const SOME_THREADS: &[u32] = &[2];
/// And of the one that this machine takes.
const ALL_THREADS: &[u32] = &[1, 2, 3];

#[test]
fn portable_f32() {
    crowds_equal_alone(Isa::Portable, F32, &MODELS[..1], ALL_THREADS, &Scale::FULL);
}

#[test]
fn portable_bf16() {
    crowds_equal_alone(Isa::Portable, BF16, &MODELS[1..2], SOME_THREADS, &Scale::FULL);
}

#[test]
fn avx2_f32() {
    crowds_equal_alone(Isa::Avx2, F32, &MODELS, threads_of(Isa::Avx2), &Scale::FULL);
}

#[test]
fn avx2_bf16() {
    crowds_equal_alone(Isa::Avx2, BF16, &MODELS, threads_of(Isa::Avx2), &Scale::FULL);
}

#[test]
fn avx512_f32() {
    avx512_equals_alone(F32, &Scale::PART);
}

#[test]
fn avx512_bf16() {
    avx512_equals_alone(BF16, &Scale::PART);
}

#[test]
#[ignore = "every worker count of older instruction sets: tests/run --long"]
fn long_older_instruction_sets() {
    crowds_equal_alone(Isa::Portable, BF16, &MODELS[1..2], ALL_THREADS, &Scale::FULL);
    crowds_equal_alone(Isa::Avx2, F32, &MODELS, ALL_THREADS, &Scale::FULL);
    crowds_equal_alone(Isa::Avx2, BF16, &MODELS, ALL_THREADS, &Scale::FULL);
}

fn threads_of(isa: Isa) -> &'static [u32] {
    if isa == Isa::detect() { ALL_THREADS } else { SOME_THREADS }
}

/// One crowd for each format, with experts: the kernels' own tests take every instruction set.
#[test]
fn quantized() {
    for (quantization, model) in Quantization::ALL.into_iter().zip([2, 0, 1]) {
        let formats = Formats { quantization: Some(quantization), ..BF16 };
        let models = &MODELS[model..=model];
        crowds_equal_alone(Isa::detect(), formats, models, &[2], &Scale::PART);
    }
}

/// Windows in most layers, with a rope of their own, and norms behind mixer and MLP: none of the
/// other models has these.
#[test]
fn windows_and_two_ropes() {
    crowds_equal_alone(Isa::detect(), BF16, &[("gemma3", 450)], &[2], &Scale::PART);
}

/// Preempted and shared blocks of codes and scales.
#[test]
fn fp8_cache() {
    let formats = Formats { kv_format: KvFormat::Fp8, ..BF16 };
    crowds_equal_alone(Isa::detect(), formats, &MODELS[..2], &[2], &Scale::PART);
}

#[test]
#[ignore = "minutes on plain arrays: tests/run --long"]
fn long_emulated_avx512_f32() {
    avx512_equals_alone(F32, &Scale::FULL);
}

#[test]
#[ignore = "minutes on plain arrays: tests/run --long"]
fn long_emulated_avx512_bf16() {
    avx512_equals_alone(BF16, &Scale::FULL);
}

/// The AVX-512 kernels: on the hardware where there is one, else the same sources on plain arrays,
/// which are slow and so run less: one model and thread count, at this scale.
fn avx512_equals_alone(formats: Formats, emulated: &Scale) {
    match Isa::Avx512.checked() {
        Ok(isa) => crowds_equal_alone(isa, formats, &MODELS, &[1, 2, 3], &Scale::FULL),
        Err(_) => crowds_equal_alone(Isa::Emulated512, formats, &MODELS[..1], &[2], emulated),
    }
}
