//! The built-in model on the device: greedy answers must be the CPU's, token by token.

use anyhow::{Context, Result};
use pagoda_engine::memory::KvBudget;
use pagoda_engine::model::files::Checkpoint;
use pagoda_engine::model::load::{load_checkpoint, load_on};
use pagoda_engine::model::{LoadOptions, LoadedModel, ModelSource};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::text::{TextFiles, TextModel};
use pagoda_kernels::cuda::suite::{Check, Finding};

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
const TINY: (usize, u32) = (1, 2);
const MAX_TOKENS: u32 = 48;

pub(super) fn run(task: &Task<'_>) -> Result<bool> {
    let options = LoadOptions {
        max_model_len: Some(256),
        max_num_seqs: Some(8),
        max_num_batched_tokens: Some(48),
        kv: KvBudget::Bytes(8 << 20),
        ..LoadOptions::default()
    };
    let (count, max_tokens) =
        if task.settings.is_tiny() { TINY } else { (QUESTIONS.len(), MAX_TOKENS) };
    let prompts = prompts(&QUESTIONS[..count])?;
    let open = || Checkpoint::open(&ModelSource::Demo);
    let cpu = answers(load_checkpoint(open()?, &options, &|_| ())?, &prompts, max_tokens)?;
    if !(task.keeps_going)() {
        return Ok(false);
    }
    let device = task.settings.open()?;
    let gpu = answers(load_on(&device, open()?, &options, &|_| ())?, &prompts, max_tokens)?;
    let wrong: Vec<String> = QUESTIONS
        .iter()
        .zip(cpu.iter().zip(&gpu))
        .filter(|(_, (cpu, gpu))| cpu != gpu)
        .map(|(question, (cpu, gpu))| format!("{question} {gpu:?} instead of {cpu:?}"))
        .collect();
    let right = wrong.is_empty();
    let what = "answers of the built-in model".into();
    let check = Check { what, cases: cpu.len(), num_wrong: wrong.len(), wrong };
    (task.say)(serde_json::to_value(Finding::Check(check))?, right)?;
    Ok(true)
}

fn prompts(questions: &[&str]) -> Result<Vec<Prompt>> {
    let files = Checkpoint::open(&ModelSource::Demo)?.files;
    let text = TextModel::from_files(&TextFiles {
        tokenizer: files.tokenizer.as_deref(),
        config: files.tokenizer_config.as_deref(),
        template: None,
    })?;
    let prompt = |question: &&str| -> Result<Prompt> {
        let chat = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        text.tokenizer.encode(&chat, false).ok().context("a question without tokens")
    };
    questions.iter().map(prompt).collect()
}

fn answers(loaded: LoadedModel, prompts: &[Prompt], max_tokens: u32) -> Result<Vec<Vec<u32>>> {
    let settings = SchedulerSettings::default();
    let (handle, _thread) = pagoda_engine::step::start(loaded.runner, loaded.info, settings)?;
    streams::answers(&handle, prompts, max_tokens)
}
