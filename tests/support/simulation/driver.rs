//! Drives the step loop over a workload and compares what readers see with the closed form.

use std::sync::Arc;

use pagoda_engine::handle::{EngineHandle, EngineStats, EventStream, border};
use pagoda_engine::request::{Event, FinishReason, SubmitError, TokenOut};
use pagoda_engine::scheduler::draft::DraftSource;
use pagoda_engine::step::{Parts, StepLoop, Turn};

use super::closed_form::Answer;
use super::hash_drafts::HashDrafts;
use super::hash_runner::{Fault, HashRunner, SharedState};
use super::workload::{Ask, ENDS, Leaves, Workload};

/// What happened in a simulation.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Steps that ran.
    pub steps: u64,
    /// The engine's own numbers at the end.
    pub stats: EngineStats,
    /// Requests refused because the queue was full.
    pub busy: u64,
    /// Readers that left before any row was computed.
    pub left_queued: u64,
    /// Readers that left before the first token.
    pub left_prefill: u64,
    /// Readers that left after the first token.
    pub left_decode: u64,
    /// Rows whose token was not known when they were launched.
    pub pending_rows: u64,
    /// Choices that their readers stopped before their end.
    pub stopped: u64,
    /// Blocks that were overwritten when their content was lost.
    pub poisoned: u64,
    /// Blocks that were copied.
    pub copied: u64,
    /// Choices that ended and were compared in full.
    pub choices: u64,
}

/// A reader and what it has seen.
struct Reader {
    number: u32,
    stream: Option<EventStream>,
    events: Vec<Event>,
    since: u32,
}

/// Turns without an end after which a simulation counts as stuck.
const MAX_TURNS: u32 = 200_000;

/// Runs `workload` to its end.
///
/// # Panics
/// If anything differs from the closed form, or the bookkeeping contradicts itself.
pub fn run(workload: &Workload, fault: Option<Fault>) -> Outcome {
    let answers = Arc::new(workload.answers());
    let (mut runner, state) = HashRunner::new(workload.info.clone(), fault);
    if workload.decode_differs {
        runner.decode_differs(workload.asks.iter().map(|ask| ask.prompt.len() as u32).collect());
    }
    let (handle, inbox) = border(workload.info.clone(), workload.settings.clone());
    let drafts =
        HashDrafts { answers: answers.clone(), vocab: workload.info.vocab, seed: workload.seed };
    let drafts = workload.drafts.then(|| Box::new(drafts) as Box<dyn DraftSource>);
    let time = state.clone();
    let clock = Box::new(move || lock(&time).now);
    let parts = Parts { runner: Box::new(runner), inbox, clock, drafts, reaper: None };
    let mut step_loop = StepLoop::new(parts);
    let lost = state.clone();
    step_loop.on_lost(Box::new(move |group, block| lock(&lost).lost.push((group, block))));
    if fault == Some(Fault::DiscardForgotten) {
        step_loop.forget_to_discard();
    }
    if fault == Some(Fault::SourceNotHeld) {
        step_loop.forget_sources();
    }
    let salted = fault != Some(Fault::KeysWithoutSalt);
    let mut outcome = Outcome::default();
    let mut readers: Vec<Reader> = Vec::new();
    let mut next = 0;
    for turn in 0..MAX_TURNS {
        while let Some(ask) = workload.asks.get(next).filter(|ask| ask.turn <= turn) {
            submit(&handle, ask, (next as u32, turn), salted, &mut readers, &mut outcome);
            next += 1;
        }
        let did = step_loop.turn().expect("no device fault is planted");
        if let Err(problem) = step_loop.scheduler().check_integrity() {
            panic!("turn {turn}: {problem}");
        }
        for reader in &mut readers {
            reader.look(workload, turn, &state, &mut outcome);
        }
        if did == Turn::Idle && next == workload.asks.len() {
            readers.iter_mut().for_each(Reader::read);
            for reader in &readers {
                let ask = &workload.asks[reader.number as usize];
                reader.compare(ask, &answers[reader.number as usize], &mut outcome);
            }
            return finish(&handle, &state, outcome);
        }
    }
    panic!("{MAX_TURNS} turns did not end it");
}

fn finish(handle: &EngineHandle, state: &SharedState, mut outcome: Outcome) -> Outcome {
    outcome.stats = handle.stats();
    assert_eq!(outcome.stats.running, 0);
    assert_eq!((outcome.stats.waiting, outcome.stats.waiting_tokens), (0, 0));
    assert_eq!(outcome.stats.blocks_used, 0, "all blocks came back");
    let state = lock(state);
    outcome.steps = state.num_steps;
    outcome.pending_rows = state.num_pending_rows;
    outcome.poisoned = state.num_poisoned;
    outcome.copied = state.num_copied;
    outcome
}

fn submit(
    handle: &EngineHandle,
    ask: &Ask,
    (number, turn): (u32, u32),
    salted: bool,
    readers: &mut Vec<Reader>,
    outcome: &mut Outcome,
) {
    match handle.submit(ask.request(number, salted)) {
        Ok(stream) => {
            let stream = Some(stream);
            readers.push(Reader { number, stream, events: Vec::new(), since: turn });
        }
        Err(SubmitError::Busy { .. }) => outcome.busy += 1,
        Err(SubmitError::NeverFits { .. }) => {}
        Err(other) => panic!("request {number} was refused: {other}"),
    }
}

impl Reader {
    /// Reads or leaves, as its request says.
    fn look(&mut self, workload: &Workload, turn: u32, state: &SharedState, outcome: &mut Outcome) {
        let ask = &workload.asks[self.number as usize];
        if self.stream.is_none() {
            return;
        }
        if (turn - self.since).is_multiple_of(ask.reads_every) {
            self.read();
        }
        if let (Some((choice, tokens)), Some(stream)) = (ask.stops, &self.stream)
            && self.tokens_of(choice) > tokens
        {
            stream.stop(choice);
        }
        let computed = lock(state).computed.contains(&self.number);
        let leaves = match ask.leaves {
            Some(Leaves::AfterTurns(turns)) => turn - self.since >= turns,
            Some(Leaves::AfterEvents(events)) => self.events.len() > events,
            Some(Leaves::InPrefill) => computed,
            None => false,
        };
        if leaves {
            self.read();
            let ended = self.stream.take().is_some_and(|stream| stream.is_ended());
            let decodes = self.events.iter().any(|event| matches!(event, Event::Token { .. }));
            match (ended, computed, decodes) {
                (true, ..) => {}
                (_, false, _) => outcome.left_queued += 1,
                (_, _, false) => outcome.left_prefill += 1,
                _ => outcome.left_decode += 1,
            }
        }
    }

    fn read(&mut self) {
        if let Some(stream) = &mut self.stream {
            self.events.extend(std::iter::from_fn(|| stream.try_next()));
        }
    }

    fn tokens_of(&self, wanted: u32) -> usize {
        let is_token =
            |event: &&Event| matches!(event, Event::Token { choice, .. } if *choice == wanted);
        self.events.iter().filter(is_token).count()
    }

    /// Compares the events with the closed form; those of a reader that left may stop anywhere, as
    /// may a choice that its reader stopped.
    fn compare(&self, ask: &Ask, answers: &[Answer], outcome: &mut Outcome) {
        let number = self.number;
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); ask.n as usize];
        let mut finished: Vec<Option<FinishReason>> = vec![None; ask.n as usize];
        let mut prompt = Vec::new();
        let mut started = false;
        for event in &self.events {
            match event {
                Event::Started { prompt_tokens, cached_tokens } => {
                    assert!(!std::mem::replace(&mut started, true), "one start");
                    assert_eq!(*prompt_tokens as usize, ask.prompt.len());
                    assert!(cached_tokens < prompt_tokens);
                }
                Event::Prompt { index, token } => {
                    assert!(tokens.iter().all(Vec::is_empty), "before any token");
                    assert_eq!(*index as usize, prompt.len() + 1, "request {number}");
                    assert_eq!(token.id, ask.prompt[*index as usize]);
                    assert_eq!(token.top.len(), ask.prompt_logprobs.unwrap_or(0) as usize);
                    prompt.push(token.logprob);
                }
                Event::Token { choice, token } => {
                    assert!(started && finished[*choice as usize].is_none());
                    check_top(token, number, tokens[*choice as usize].len());
                    tokens[*choice as usize].push(token.id);
                }
                Event::Finished { choice, reason } => finished[*choice as usize] = Some(*reason),
                Event::Failed(error) => panic!("request {number} failed: {error}"),
            }
        }
        let stayed = self.stream.is_some();
        if ask.prompt_logprobs.is_some() {
            assert!(answers[0].prompt_logprobs.starts_with(&prompt), "request {number}");
            assert!(!stayed || answers[0].prompt_logprobs.len() == prompt.len());
        }
        for (choice, answer) in answers.iter().enumerate() {
            let (tokens, finished) = (&tokens[choice], finished[choice]);
            assert!(answer.tokens.starts_with(tokens), "request {number}: {tokens:?} {answer:?}");
            assert!(!stayed || finished.is_some(), "request {number} has no end");
            if finished == Some(FinishReason::Stopped) {
                let (stopped, seen) = ask.stops.expect("nobody else stops one");
                assert!(stopped as usize == choice && tokens.len() > seen, "request {number}");
                outcome.stopped += 1;
            } else if let Some(reason) = finished {
                assert_eq!(tokens, &answer.tokens, "request {number}");
                assert_eq!(reason, reason_of(ask, tokens), "request {number}");
                outcome.choices += 1;
            }
        }
    }
}

fn check_top(token: &TokenOut, number: u32, output_position: usize) {
    let asked = if number.is_multiple_of(2) { 2 } else { 0 };
    assert_eq!(token.top.len(), asked.min(output_position % 3));
}

fn reason_of(ask: &Ask, tokens: &[u32]) -> FinishReason {
    match tokens.last() {
        Some(&last) if tokens.len() as u32 > ask.min_tokens && last == ENDS[0] => FinishReason::Eos,
        Some(&last) if tokens.len() as u32 > ask.min_tokens && last == ENDS[1] => {
            FinishReason::StopToken(last)
        }
        _ => FinishReason::Length,
    }
}

fn lock(state: &SharedState) -> std::sync::MutexGuard<'_, super::hash_runner::RunnerState> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
