//! The same answer alone or in a crowd: the float bits of every log-probability of 64 mixed
//! requests equal those of each alone, per instruction set, for 1, 2 and 3 threads, f32 and bf16.
//!
//! The crowd runs in a cache that is far too small, in steps that are far too short, beside clients
//! that leave; the test asserts that preemptions, hits on blocks written by decode, cancels in
//! prefill and in decode, and every chunk size from 1 to 97 really happened.

mod crowd;
mod engine;
mod workload;

use std::path::PathBuf;

use pagoda_kernels::cpu::Isa;
use pagoda_kernels::dtype::DType;

use crowd::Crowd;
use engine::{Engine, Setup};
use workload::{Outcome, Request, chunk_sweep, first_turns, second_turn};

/// Checkpoints that between them have grouped heads, a window and experts.
const MODELS: [&str; 3] = ["qwen3", "qwen2_window", "qwen3_moe"];

fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

/// Runs the crowd for each thread count against the answers that each request gets alone.
fn crowd_equals_alone(isa: Isa, dtype: DType, model: &str, threads: &[usize]) {
    if !isa.is_supported() {
        return;
    }
    let setup = Setup { folder: checkpoint(model), isa, dtype, threads: 1 };
    let alone = Engine::ample(&setup);
    let firsts: Vec<(Request, Outcome)> =
        first_turns(alone.vocab()).into_iter().map(|r| alone.run(r)).collect();
    let seconds: Vec<(Request, Outcome)> = firsts
        .iter()
        .enumerate()
        .map(|(index, (request, outcome))| alone.run(second_turn(index, request, outcome)))
        .collect();
    let sweep: Vec<(Request, Outcome)> =
        chunk_sweep(alone.vocab()).into_iter().map(|r| alone.run(r)).collect();
    assert!(firsts.len() + seconds.len() >= 64);
    for &threads in threads {
        let engine = Engine::cramped(&Setup { threads, ..setup.clone() });
        let crowd = Crowd::run(&engine, &firsts, &seconds);
        crowd.assert_it_happened(&engine);
        for (request, expected) in &sweep {
            let (_, outcome) = engine.run(request.clone());
            outcome.assert_bits_equal(expected, &request.name);
        }
        engine.assert_every_chunk_size();
    }
}

#[test]
fn portable_f32() {
    crowd_equals_alone(Isa::Portable, DType::F32, MODELS[0], &[1, 2, 3]);
}

#[test]
fn portable_bf16() {
    crowd_equals_alone(Isa::Portable, DType::Bf16, MODELS[1], &[1, 2, 3]);
}

#[test]
fn avx2_f32() {
    for model in MODELS {
        crowd_equals_alone(Isa::Avx2, DType::F32, model, &[1, 2, 3]);
    }
}

#[test]
fn avx2_bf16() {
    for model in MODELS {
        crowd_equals_alone(Isa::Avx2, DType::Bf16, model, &[1, 2, 3]);
    }
}

#[test]
fn avx512_f32() {
    for model in MODELS {
        crowd_equals_alone(avx512(), DType::F32, model, &[1, 2, 3]);
    }
}

#[test]
fn avx512_bf16() {
    for model in MODELS {
        crowd_equals_alone(avx512(), DType::Bf16, model, &[1, 2, 3]);
    }
}

/// The AVX-512 kernels: on the hardware where there is one, else on plain arrays.
fn avx512() -> Isa {
    if Isa::Avx512.is_supported() { Isa::Avx512 } else { Isa::Emulated512 }
}
