//! Greedy answers of a loaded model, through the step loop on the caller's thread.

use pagoda_engine::handle::border;
use pagoda_engine::model::LoadedModel;
use pagoda_engine::model::files::ModelFiles;
use pagoda_engine::request::{Event, Request, SamplerParams, Segment, StopParams, Tenant};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_engine::step::{Parts, StepLoop, Turn};
use pagoda_engine::text::{Rendering, TextModel};

/// What prompts were answered, and how.
#[derive(Debug)]
pub struct Answers {
    /// Of each answer.
    pub tokens: Vec<Vec<u32>>,
    /// How often one gave way to another.
    pub preemptions: u64,
}

/// The tokens of each answer, side by side in as many steps as it takes.
pub fn answers(loaded: LoadedModel, prompts: &[Vec<u32>], max_tokens: u32) -> Vec<Vec<u32>> {
    Answers::of(loaded, prompts, max_tokens).tokens
}

impl Answers {
    /// Answers `prompts`, side by side in as many steps as it takes.
    pub fn of(loaded: LoadedModel, prompts: &[Vec<u32>], max_tokens: u32) -> Self {
        let eos = loaded.info.eos_token_ids.clone();
        let (handle, inbox) = border(loaded.info, SchedulerSettings::default());
        let clock = Box::new(std::time::Instant::now);
        let parts = Parts { runner: loaded.runner, inbox, clock, drafts: None, reaper: None };
        let mut step_loop = StepLoop::new(parts);
        let request = |prompt: &Vec<u32>| Request {
            id: "r".into(),
            input: vec![Segment::Tokens(prompt.clone())],
            sampler: SamplerParams::default(),
            stop: StopParams {
                max_tokens,
                min_tokens: 0,
                eos_token_ids: eos.clone(),
                stop_token_ids: vec![],
            },
            n: 1,
            prompt_logprobs: None,
            tenant: Tenant { id: "t".into(), cache_salt: Default::default() },
            priority: 0,
        };
        let mut streams: Vec<_> =
            prompts.iter().map(|prompt| handle.submit(request(prompt)).unwrap()).collect();
        while step_loop.turn().unwrap() == Turn::Stepped {}
        let tokens = |stream: &mut pagoda_engine::handle::EventStream| {
            let mut tokens = Vec::new();
            while let Some(event) = stream.try_next() {
                match event {
                    Event::Token { token, .. } => tokens.push(token.id),
                    Event::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            tokens
        };
        let tokens = streams.iter_mut().map(tokens).collect();
        Answers { tokens, preemptions: handle.stats().preemptions }
    }
}

/// The text half of the built-in model.
pub fn demo_text(files: &ModelFiles) -> TextModel {
    TextModel::from_files(files, &[], &Rendering::Here).unwrap()
}

/// A question in the built-in model's template.
pub fn demo_prompt(text: &TextModel, question: &str) -> Vec<u32> {
    let chat = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    text.tokenizer.encode(&chat, false).unwrap()
}
