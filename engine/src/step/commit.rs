//! Takes a finished step's output into its sequences and towards their readers.
//!
//! A sequence gains no token (its prompt is not through), one, or as many as verified drafts give;
//! rows of rejected drafts are forgotten. What a step brings for a run that has ended meanwhile is
//! dropped, here and nowhere else.

use std::sync::atomic::Ordering::Relaxed;

use pagoda_kernels::device::Step;
use pagoda_kernels::error::KernelError;
use pagoda_kernels::sampling::{Purpose, SampleOutput, SampledRow};

use crate::handle::stream::FlatToken;
use crate::request::FinishReason;
use crate::scheduler::Scheduler;
use crate::scheduler::record::{Entry, StepRecord};
use crate::sequence::SequenceGroup;

/// What a step gave one sequence.
#[derive(Clone, Copy, Debug, Default)]
struct Gain {
    /// Tokens generated.
    tokens: u32,
    /// Whether the reader has something new to read.
    news: bool,
    /// Whether the request's prompt has just become complete.
    started: bool,
    /// Why the sequence ended, if it did.
    finished: Option<FinishReason>,
}

/// Commits `step`, of which `record` says what was launched.
///
/// Errors: a device that returned another number of rows, or a token outside the vocabulary.
pub fn commit(
    scheduler: &mut Scheduler,
    record: &StepRecord,
    step: &Step,
) -> Result<(), KernelError> {
    let (batch, output) = (&step.batch, &step.output);
    let vocab = scheduler.shared.info.vocab;
    if output.rows.len() != batch.logits.len() || output.rows.iter().any(|r| r.token >= vocab) {
        return Err(KernelError::Fault("the sampler's output does not fit the step".into()));
    }
    for entry in &record.entries {
        // The one place where the outcome of an ended run is discarded: the sequence ended, was
        // preempted or cancelled after the step was launched.
        let Some(group) = scheduler.sequences.in_run(entry.id, entry.run) else {
            scheduler.shared.stats.discarded.fetch_add(1, Relaxed);
            continue;
        };
        let rows = batch.logits[entry.logits()].iter().map(|row| row.purpose);
        let sampled = rows.zip(&output.rows[entry.logits()]);
        let gain = take(group, entry, sampled, output);
        account(scheduler, entry, gain);
    }
    Ok(())
}

/// Moves one sequence's rows into it and its events to the reader.
fn take<'a>(
    group: &mut SequenceGroup,
    entry: &Entry,
    sampled: impl Iterator<Item = (Purpose, &'a SampledRow)>,
    output: &SampleOutput,
) -> Gain {
    let SequenceGroup { sink, sequences, started, .. } = group;
    let choice = entry.id.choice;
    let sequence = &mut sequences[choice as usize];
    let prompt_tokens = sequence.prompt.len() as u32;
    let mut gain = Gain { started: !*started && entry.end() >= prompt_tokens, ..Gain::default() };
    *started |= gain.started;
    gain.news = gain.started || entry.num_logits > 0;
    let mut announced = !gain.started;
    for (purpose, row) in sampled {
        let token = FlatToken { id: row.token, logprob: row.logprob, rank: row.rank };
        if let Purpose::PromptLogprob { num_top, .. } = purpose {
            let index = sequence.prompt_rows_sent.max(entry.base) + 1;
            sink.prompt(token, top_of(row, output, num_top));
            sequence.prompt_rows_sent = index;
            continue;
        }
        if !std::mem::replace(&mut announced, true) {
            sink.started(prompt_tokens, sequence.cached_tokens.unwrap_or(0));
        }
        sequence.output.push(row.token);
        gain.tokens += 1;
        let num_top = sequence.sampler.num_logprobs.unwrap_or(0);
        sink.token(choice, token, top_of(row, output, num_top));
        gain.finished = sequence.finish_reason();
        let rejected = matches!(purpose, Purpose::Verify { draft, .. } if draft != row.token);
        if gain.finished.is_some() || rejected {
            break;
        }
    }
    if !announced {
        sink.started(prompt_tokens, sequence.cached_tokens.unwrap_or(0));
    }
    if sequence.stop.max_tokens == 0 && entry.end() >= prompt_tokens {
        gain.finished = Some(FinishReason::Length);
    }
    if gain.finished.is_none() && sink.is_stopped(choice) {
        gain.finished = Some(FinishReason::Stopped);
    }
    if entry.num_drafts > 0 {
        // K and V are right for the last known token and for each accepted draft.
        sequence.computed = entry.end() + gain.tokens.saturating_sub(1);
        sequence.verifying = false;
    } else if entry.samples {
        sequence.pending -= 1;
    }
    gain
}

/// What the scheduler must do after a sequence's gain.
fn account(scheduler: &mut Scheduler, entry: &Entry, gain: Gain) {
    let stats = &scheduler.shared.stats;
    if gain.tokens > 0 {
        stats.generation_tokens.fetch_add(u64::from(gain.tokens), Relaxed);
        if entry.num_drafts > 0 {
            stats.draft_tokens.fetch_add(u64::from(entry.num_drafts), Relaxed);
            stats.draft_tokens_accepted.fetch_add(u64::from(gain.tokens - 1), Relaxed);
        }
    }
    if gain.news {
        scheduler.mark_dirty(entry.id.group);
    }
    if gain.started {
        scheduler.admit_choices(entry.id.group);
    }
    if let Some(reason) = gain.finished {
        scheduler.finish(entry.id, reason);
    }
}

/// The row's top list, at most as long as the reader's ring expects.
fn top_of<'a>(row: &SampledRow, output: &'a SampleOutput, num_top: u32) -> &'a [(u32, f32)] {
    let start = row.top_start as usize;
    let end = start + row.top_len.min(num_top) as usize;
    output.top.get(start..end).unwrap_or(&[])
}
