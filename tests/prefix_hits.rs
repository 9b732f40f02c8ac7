//! Prefix hits that end within a block change no bit of what is answered: conversations drawn from seeds,
//! each against an engine that shares nothing, on the CPU and on the emulated GPU.
//!
//! Every prompt goes on behind a random part of an earlier prompt and its answer, some side by side.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "test code")]

use std::path::PathBuf;

use pagoda_engine::handle::{EngineHandle, border};
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::{load_checkpoint, load_on};
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource};
use pagoda_engine::request::{Event, Request, SamplerParams, Segment, StopParams, Tenant};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::{Parts, StepLoop, Turn};
use pagoda_kernels::cuda::{CudaDevice, CudaOptions};
use pagoda_kernels::dtype::DType;
use pagoda_kernels::kv_format::KvFormat;
use pagoda_tests::golden::folder;
use pagoda_tests::simulation::closed_form::Random;

/// Token ids below this are in every checkpoint's vocabulary.
const VOCAB: u32 = 300;

/// How much is asked.
#[derive(Clone, Copy)]
struct Scale {
    waves: u32,
    prompt_max: u32,
    tokens_max: u32,
}

/// An engine whose loop runs on this thread.
struct Engine {
    handle: EngineHandle,
    step_loop: StepLoop,
}

/// Tokens of an answer, with the bits of their log-probabilities and of the likeliest ones.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    bits: Vec<(u32, Vec<(u32, u32)>)>,
}

impl Engine {
    fn new(mut loaded: LoadedModel, prefix_cache: bool) -> Self {
        loaded.info.eos_token_ids.clear();
        let settings = SchedulerSettings { prefix_cache, ..SchedulerSettings::default() };
        let (handle, inbox) = border(loaded.info, settings);
        let clock = Box::new(std::time::Instant::now);
        let parts = Parts { runner: loaded.runner, inbox, clock, drafts: None, reaper: None };
        Engine { handle, step_loop: StepLoop::new(parts) }
    }

    /// Answers a wave of requests side by side; gives how many tokens of each were cached, too.
    fn answer(&mut self, wave: &[Request]) -> Vec<(Answer, u32)> {
        let submit = |request: &Request| self.handle.submit(request.clone()).unwrap();
        let mut streams: Vec<_> = wave.iter().map(submit).collect();
        while self.step_loop.turn().unwrap() == Turn::Stepped {
            self.step_loop.scheduler().check_integrity().unwrap();
        }
        let read = |stream: &mut pagoda_engine::handle::EventStream| {
            let (mut answer, mut cached) = (Answer::default(), 0);
            while let Some(event) = stream.try_next() {
                match event {
                    Event::Started { cached_tokens, .. } => cached = cached_tokens,
                    Event::Token { token, .. } => {
                        let top = token.top.iter().map(|(id, logprob)| (*id, logprob.to_bits()));
                        answer.tokens.push(token.id);
                        answer.bits.push((token.logprob.to_bits(), top.collect()));
                    }
                    Event::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            (answer, cached)
        };
        streams.iter_mut().map(read).collect()
    }
}

fn request(random: &mut Random, prompt: Vec<u32>, tokens_max: u32) -> Request {
    Request {
        id: "r".into(),
        input: vec![Segment::Tokens(prompt)],
        sampler: SamplerParams {
            temperature: random.pick(&[0.0, 0.8]),
            seed: u64::from(random.below(1000)),
            num_logprobs: Some(3),
            ..SamplerParams::default()
        },
        stop: StopParams {
            max_tokens: 1 + random.below(tokens_max),
            min_tokens: 0,
            eos_token_ids: vec![],
            stop_token_ids: vec![],
        },
        n: 1,
        prompt_logprobs: None,
        tenant: Tenant { id: "t".into(), cache_salt: Default::default() },
        priority: 0,
    }
}

/// Asks both engines the same; gives how many hits ended within a block.
fn tail_hits(seed: u64, scale: Scale, [plain, caching]: [LoadedModel; 2]) -> u32 {
    let (mut plain, mut caching) = (Engine::new(plain, false), Engine::new(caching, true));
    let mut random = Random::new(seed);
    let mut texts: Vec<Vec<u32>> = vec![Vec::new()];
    let block = caching.handle.info().block_size;
    let mut hits = 0;
    for wave in 0..scale.waves {
        let mut asked = Vec::new();
        for _ in 0..1 + random.below(3) {
            let before = &texts[random.below(texts.len() as u32) as usize];
            // Mostly all of it, as a conversation goes on.
            let cut =
                if random.percent(50) { 0 } else { random.below(before.len() as u32 / 2 + 1) };
            let mut prompt = before[..before.len() - cut as usize].to_vec();
            let own = if prompt.is_empty() { scale.prompt_max / 2 } else { 7 };
            prompt.extend((0..=random.below(own)).map(|_| random.below(VOCAB)));
            prompt.truncate(scale.prompt_max as usize);
            asked.push(request(&mut random, prompt, scale.tokens_max));
        }
        let (want, got) = (plain.answer(&asked), caching.answer(&asked));
        for (request, ((want, nothing), (got, cached))) in asked.iter().zip(want.iter().zip(&got)) {
            assert_eq!(got, want, "seed {seed}, wave {wave}, {cached} tokens cached");
            assert_eq!(*nothing, 0);
            hits += u32::from(!cached.is_multiple_of(block));
            let Segment::Tokens(mut text) = request.input[0].clone();
            text.extend(&got.tokens);
            texts.push(text);
        }
    }
    hits
}

fn options(dtype: DType, kv_dtype: KvFormat) -> LoadOptions {
    LoadOptions {
        dtype: Some(dtype),
        kv_dtype: Some(kv_dtype),
        max_model_len: Some(256),
        max_num_seqs: Some(4),
        max_num_batched_tokens: Some(48),
        kv: KvBudget::Bytes(4 << 20),
        ..LoadOptions::default()
    }
}

const FORMATS: [(DType, KvFormat); 3] = [
    (DType::F32, KvFormat::Plain(DType::F32)),
    (DType::Bf16, KvFormat::Plain(DType::Bf16)),
    (DType::Bf16, KvFormat::Fp8),
];

#[test]
fn answers_have_the_same_bits_on_the_cpu() {
    let scale = Scale { waves: 25, prompt_max: 205, tokens_max: 30 };
    for (seed, case) in (0..).zip(["qwen3", "qwen2_window", "qwen3_moe"]) {
        for (number, (dtype, kv_dtype)) in (0..).zip(FORMATS) {
            let options = LoadOptions {
                threads: Some(1 + number % 3),
                block_size: Some([16, 32, 64][number as usize]),
                ..options(dtype, kv_dtype)
            };
            let load = || {
                let checkpoint = Checkpoint::open(&ModelSource::Folder(folder(case))).unwrap();
                load_checkpoint(checkpoint, &options, &|_| ()).unwrap()
            };
            let hits = tail_hits(10 * seed + u64::from(number), scale, [load(), load()]);
            eprintln!("{case} {kv_dtype:?}: {hits} hits within a block");
            assert!(hits >= 15, "{hits}");
        }
    }
}

/// Compiled kernels are kept beside the test's own binary.
fn emulated(seed: u64) -> CudaDevice {
    let test = std::env::current_exe().unwrap();
    let folder: PathBuf = test.parent().unwrap().join("emulated-kernels");
    CudaDevice::emulated(&folder, seed).with_options(CudaOptions { deterministic: true })
}

#[test]
fn answers_have_the_same_bits_on_the_emulated_gpu() {
    let scale = Scale { waves: 5, prompt_max: 110, tokens_max: 6 };
    let cases = [("qwen2_window", FORMATS[0]), ("qwen3", FORMATS[2])];
    for (seed, (case, (dtype, kv_dtype))) in (0..).zip(cases) {
        let load = || {
            let checkpoint = Checkpoint::open(&ModelSource::Folder(folder(case))).unwrap();
            load_on(&emulated(seed), checkpoint, &options(dtype, kv_dtype), &|_| ()).unwrap()
        };
        let hits = tail_hits(seed, scale, [load(), load()]);
        eprintln!("{case} {kv_dtype:?}: {hits} hits within a block");
        assert!(hits >= 3, "{hits}");
    }
}
