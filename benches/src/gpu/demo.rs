//! The built-in model on the device: greedy answers must be the CPU's, token by token, and those of
//! `--deterministic` the same alone and in a crowd.

use anyhow::{Context, Result};
use pagoda_engine::handle::EngineHandle;
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::{load_checkpoint, load_on};
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource};
use pagoda_engine::request::SamplerParams;
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::EngineThread;
use pagoda_engine::text::{Rendering, TextModel};
use pagoda_kernels::cuda::suite::{Check, Finding};
use pagoda_kernels::cuda::{CudaOptions, GpuOptions};
use pagoda_kernels::kv_format::KvFormat;

use super::part::Task;
use crate::streams::{self, Prompt};

/// In the model's template, asked together.
const QUESTIONS: [&str; 8] = [
    "What is 17 + 25?",
    "你好",
    "Sort 5, 3, 9, 1.",
    "What is 81 - 36?",
    "Count from 3 to 9.",
    "Repeat: blue lamp",
    "Hello!",
    "Sort 12, 4, 31, 8, 2.",
];
/// Questions and tokens under emulation.
const TINY: (usize, u32) = (2, 2);
const MAX_TOKENS: u32 = 48;

pub(super) fn run(task: &Task<'_>) -> Result<bool> {
    let (count, max_tokens) =
        if task.settings.is_tiny() { TINY } else { (QUESTIONS.len(), MAX_TOKENS) };
    let prompts = prompts(&QUESTIONS[..count])?;
    let plain = options(None);
    let greedy = |loaded: LoadedModel| {
        let engine = Engine::start(loaded)?;
        streams::answers(&engine.handle, &prompts, max_tokens, &SamplerParams::default())
    };
    let cpu = greedy(load_checkpoint(open()?, &plain, &|_| ())?)?;
    if !(task.keeps_going)() {
        return Ok(false);
    }
    let device = task.settings.open()?;
    let gpu = greedy(load_on(&device, open()?, &plain, &|_| ())?)?;
    task.compare("answers of the built-in model, against the CPU's", &gpu, &cpu)?;
    for kv_dtype in [None, Some(KvFormat::Fp8)] {
        if !(task.keeps_going)() {
            return Ok(false);
        }
        let (alone, together) = alone_and_together(task, kv_dtype, &prompts, max_tokens)?;
        let cache = kv_dtype.map_or("plain", KvFormat::name);
        let what = format!("deterministic answers over a {cache} cache, together against alone");
        task.compare(&what, &together, &alone)?;
    }
    Ok(true)
}

fn open() -> Result<Checkpoint> {
    Ok(Checkpoint::open(&ModelSource::Demo)?)
}

fn options(kv_dtype: Option<KvFormat>) -> LoadOptions {
    LoadOptions {
        kv_dtype,
        max_model_len: Some(256),
        max_num_seqs: Some(8),
        max_num_batched_tokens: Some(48),
        kv: KvBudget::Bytes(8 << 20),
        ..LoadOptions::default()
    }
}

/// What `--deterministic` promises of a card: each answer by itself, and all of them at once. They are
/// drawn, so that a probability of other bits soon shows.
fn alone_and_together(
    task: &Task<'_>,
    kv_dtype: Option<KvFormat>,
    prompts: &[Prompt],
    max_tokens: u32,
) -> Result<(Vec<Tokens>, Vec<Tokens>)> {
    let device = task.settings.open_as(|gpu| GpuOptions { own_products: true, ..gpu })?;
    let device = device.with_options(CudaOptions { deterministic: true });
    let engine = Engine::start(load_on(&device, open()?, &options(kv_dtype), &|_| ())?)?;
    let sampler =
        SamplerParams { temperature: 1.5, seed: task.settings.seed, ..Default::default() };
    let answers = |prompts| streams::answers(&engine.handle, prompts, max_tokens, &sampler);
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.extend(answers(std::slice::from_ref(prompt))?);
    }
    Ok((alone, answers(prompts)?))
}

/// Of an answer.
type Tokens = Vec<u32>;

impl Task<'_> {
    /// Says whether answers to the first questions are those that are wanted.
    fn compare(&self, what: &str, got: &[Tokens], wanted: &[Tokens]) -> Result<()> {
        let wrong: Vec<String> = QUESTIONS
            .iter()
            .zip(wanted.iter().zip(got))
            .filter(|(_, (wanted, got))| wanted != got)
            .map(|(question, (wanted, got))| format!("{question} {got:?} instead of {wanted:?}"))
            .collect();
        let right = wrong.is_empty();
        let check = Check { what: what.into(), cases: wanted.len(), num_wrong: wrong.len(), wrong };
        (self.say)(serde_json::to_value(Finding::Check(check))?, right)
    }
}

fn prompts(questions: &[&str]) -> Result<Vec<Prompt>> {
    let files = Checkpoint::open(&ModelSource::Demo)?.files;
    let text = TextModel::from_files(&files, &[], &Rendering::Here)?;
    let prompt = |question: &&str| -> Result<Prompt> {
        let chat = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        text.tokenizer.encode(&chat, false).ok().context("a question without tokens")
    };
    questions.iter().map(prompt).collect()
}

/// A model that answers until it is dropped.
struct Engine {
    handle: EngineHandle,
    _thread: EngineThread,
}

impl Engine {
    fn start(loaded: LoadedModel) -> Result<Self> {
        let settings = SchedulerSettings::default();
        let (handle, _thread) = pagoda_engine::step::start(loaded.runner, loaded.info, settings)?;
        Ok(Engine { handle, _thread })
    }
}
