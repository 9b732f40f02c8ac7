//! The op over a team: mixed rows, any number of workers, counts that follow the sequence.

use super::*;
use crate::batch::Batch;
use crate::cpu::command::{LeaderOutput, ScratchPlan};
use crate::cpu::sample::SampleOp;
use crate::cpu::test_team::{self, activation, noise};
use crate::device::Limits;
use crate::ops::Sample;
use crate::sampling::{LogitsRow, Purpose, SampleOutput};

const VOCAB: usize = 300;
const NUM_SLOTS: usize = 6;

fn limits() -> Limits {
    Limits {
        max_tokens: 64,
        max_seqs: NUM_SLOTS,
        max_logits_rows: 32,
        vocab: VOCAB,
        max_model_len: 64,
        max_top: 5,
    }
}

fn params(slot: usize) -> SamplerParams {
    let base = SamplerParams { seed: slot as u64, ..SamplerParams::default() };
    match slot {
        0 => base,
        1 => SamplerParams { num_logprobs: Some(3), ..base },
        2 => SamplerParams { temperature: 1.5, top_k: 40, top_p: 0.9, ..base },
        3 => SamplerParams { temperature: 1.0, frequency_penalty: 0.5, ..base },
        4 => SamplerParams { repetition_penalty: 1.3, num_logprobs: Some(0), ..base },
        _ => SamplerParams { temperature: 0.8, min_p: 0.01, num_logprobs: Some(99), ..base },
    }
}

fn op(workers: usize) -> SampleOp {
    let logits = activation(32, VOCAB + 7, |row, col| 4.0 * noise(3, row, col));
    let mut op = SampleOp::new(Sample { logits, vocab: VOCAB });
    op.plan(&mut ScratchPlan::default(), &limits(), workers);
    op
}

/// One step in which sequence s has slot s; inits for all slots if it is the first.
fn step(op: &SampleOp, isa: Isa, workers: usize, batch: &Batch) -> SampleOutput {
    let mut output = SampleOutput::default();
    let leader = SendOutput(&raw mut output);
    test_team::run(isa, workers, ScratchPlan::default(), |ctx| {
        op.run(ctx, batch, LeaderOutput::new(leader.get()));
    });
    output
}

/// The leader alone writes through it.
struct SendOutput(*mut SampleOutput);
// SAFETY: see above; the team ends before the output is read.
unsafe impl Sync for SendOutput {}
impl SendOutput {
    fn get(&self) -> *mut SampleOutput {
        self.0
    }
}

fn inits() -> Vec<SlotInit> {
    let init = |slot: usize| SlotInit {
        slot: slot as u32,
        params: Arc::new(params(slot)),
        prompt: vec![5, 6],
        output: Vec::new(),
    };
    (0..NUM_SLOTS).map(init).collect()
}

/// All slots sample at `position`, some rows are prompt log-probabilities, slot 3 verifies drafts.
fn batch(position: u32, drafts: &[u32]) -> Batch {
    let mut batch = Batch { seq_slot: (0..NUM_SLOTS as u32).collect(), ..Batch::new(1) };
    let mut push = |seq: usize, purpose: Purpose| {
        let row = batch.logits.len() as u32;
        batch.logits.push(LogitsRow { row, seq: seq as u32, purpose });
    };
    for seq in 0..NUM_SLOTS {
        for target in 0..seq as u32 {
            push(seq, Purpose::PromptLogprob { target, num_top: target });
        }
        let mut output_position = position;
        for &draft in drafts.iter().filter(|_| seq == 3) {
            push(seq, Purpose::Verify { output_position, draft });
            output_position += 1;
        }
        push(seq, Purpose::Sample { output_position });
    }
    batch
}

fn bits(output: &SampleOutput) -> Vec<u32> {
    let rows = output
        .rows
        .iter()
        .flat_map(|row| [row.token, row.logprob.to_bits(), row.rank, row.top_start, row.top_len]);
    rows.chain(output.top.iter().flat_map(|(token, value)| [*token, value.to_bits()])).collect()
}

#[test]
fn bits_do_not_depend_on_workers() {
    for isa in Isa::available() {
        let run = |workers| {
            let op = op(workers);
            let first = Batch { slot_inits: inits(), ..batch(0, &[9, 9]) };
            let outputs = [first, batch(1, &[]), batch(2, &[1])];
            outputs.map(|batch| bits(&step(&op, isa, workers, &batch)))
        };
        let alone = run(1);
        assert!((2..=4).all(|workers| run(workers) == alone));
    }
}

#[test]
fn rows_say_what_was_asked_for() {
    let op = op(2);
    let batch = Batch { slot_inits: inits(), ..batch(0, &[]) };
    let output = step(&op, Isa::detect(), 2, &batch);
    let mut top_start = 0;
    for (row, sampled) in batch.logits.iter().zip(&output.rows) {
        let asked = match row.purpose {
            Purpose::PromptLogprob { target, num_top } => {
                assert_eq!(sampled.token, target);
                Some(num_top)
            }
            _ => params(row.seq as usize).num_logprobs,
        };
        assert_eq!(sampled.top_start, top_start);
        assert_eq!(sampled.top_len, asked.unwrap_or(0).min(5));
        assert_eq!(sampled.logprob.is_nan(), asked.is_none());
        assert_eq!(sampled.rank == 0, asked.is_none());
        top_start += sampled.top_len;
    }
    assert_eq!(output.top.len(), top_start as usize);
}

#[test]
fn a_preempted_sequence_goes_on_as_if_it_had_not_been() {
    let op = op(1);
    let first = Batch { slot_inits: inits(), ..batch(0, &[]) };
    let mut tokens = vec![Vec::new(); NUM_SLOTS];
    let sampled = |output: SampleOutput, batch: &Batch| -> Vec<u32> {
        let is_sample = |row: &&LogitsRow| matches!(row.purpose, Purpose::Sample { .. });
        let rows = batch.logits.iter().filter(is_sample);
        rows.map(|row| output.rows[row.row as usize].token).collect()
    };
    let steps = [first, batch(1, &[]), batch(2, &[]), batch(3, &[])];
    for batch in &steps {
        let output = step(&op, Isa::detect(), 1, batch);
        for (tokens, token) in tokens.iter_mut().zip(sampled(output, batch)) {
            tokens.push(token);
        }
    }
    let back = inits().into_iter().zip(&tokens);
    let slot_inits =
        back.map(|(init, tokens)| SlotInit { output: tokens[..3].to_vec(), ..init }).collect();
    let again = Batch { slot_inits, ..batch(3, &[]) };
    let output = step(&op, Isa::detect(), 1, &again);
    let last: Vec<u32> = tokens.iter().map(|tokens| tokens[3]).collect();
    assert_eq!(sampled(output, &again), last);
    // The same logits each step: only a penalty moves a greedy sequence on.
    assert_ne!(tokens[4][0], tokens[4][3]);
    assert_eq!(tokens[0][0], tokens[0][3]);
}

#[test]
fn tokens_behind_a_refused_draft_are_not_counted() {
    let counted = |drafts: &[u32]| -> u32 {
        let op = op(1);
        let init = Batch { slot_inits: inits(), ..batch(0, drafts) };
        step(&op, Isa::detect(), 1, &init);
        // SAFETY: the team has ended.
        let slot = unsafe { op.state.as_ref().unwrap().slots.cell(3) };
        slot.counts.entries().iter().map(|entry| entry.generated).sum()
    };
    assert_eq!(counted(&[]), 1);
    // No row samples token VOCAB - 1 here, so the first draft is refused.
    assert_eq!(counted(&[VOCAB as u32 - 1; 3]), 1);
    let op = op(1);
    let batch = Batch { slot_inits: inits(), ..batch(0, &[VOCAB as u32 - 1; 2]) };
    let output = step(&op, Isa::detect(), 1, &batch);
    let verified = batch.logits.iter().find(|row| matches!(row.purpose, Purpose::Verify { .. }));
    let right = output.rows[verified.unwrap().row as usize].token;
    assert_eq!(counted(&[right, VOCAB as u32 - 1]), 2);
}
