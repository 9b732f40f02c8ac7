//! Steps of a made-up schedule: sequences come, bring their prompts in chunks, decode, and leave.
//!
//! Decoded rows take their tokens on the device, so all steps are known beforehand.

use std::sync::Arc;

use super::machine::{BLOCK, LIMITS, push_copy, push_rows};
use crate::batch::{Batch, PENDING_TOKEN};
use crate::sampling::{LogitsRow, Purpose, SamplerParams, SlotInit};

/// Random choices from a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        for _ in 0..2 {
            x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        ((x >> 33) % u64::from(n)) as u32
    }

    fn token(&mut self) -> u32 {
        self.below(LIMITS.vocab as u32)
    }
}

/// A sequence on its way.
struct Sequence {
    slot: u32,
    position: u32,
    /// Slot and index of the block that the first one it writes to is a copy of, where it begins within.
    copied: Option<(u32, usize)>,
    prompt_left: u32,
    generated: u32,
    tokens_max: u32,
    is_new: bool,
    params: SamplerParams,
}

impl Sequence {
    fn new(dice: &mut Dice, slot: u32) -> Self {
        let penalty = if dice.below(3) == 0 { 0.7 } else { 0.0 };
        let params = SamplerParams {
            temperature: [0.0, 0.8, 1.5][dice.below(3) as usize],
            top_k: dice.below(2) * 20,
            seed: u64::from(dice.below(1000)),
            frequency_penalty: penalty,
            logit_bias: (0..dice.below(3)).map(|token| (token * 7, 0.5)).collect(),
            num_logprobs: (dice.below(3) > 0).then_some(5),
            ..SamplerParams::default()
        };
        let position = [0, 0, 60, 250, 560][dice.below(5) as usize];
        let other = (slot + 1 + dice.below(LIMITS.max_seqs as u32 - 1)) % LIMITS.max_seqs as u32;
        // In no block of these does a sequence begin.
        let at = [1, 2, 4, 5, 6, 7, 9][dice.below(7) as usize];
        Sequence {
            slot,
            position,
            copied: (position > 0 && dice.below(3) > 0).then_some((other, at)),
            prompt_left: 1 + dice.below(6),
            generated: 0,
            tokens_max: 2 + dice.below(14),
            is_new: true,
            params,
        }
    }

    /// Appends what the sequence brings to a step.
    fn push(&mut self, dice: &mut Dice, batch: &mut Batch) {
        let seq = batch.num_seqs() as u32;
        if std::mem::take(&mut self.is_new) {
            let is_counted = self.params.needs_token_counts();
            let tokens = |len: u32, dice: &mut Dice| (0..len).map(|_| dice.token()).collect();
            batch.slot_inits.push(SlotInit {
                slot: self.slot,
                params: Arc::new(self.params.clone()),
                prompt: if is_counted { tokens(500, dice) } else { Vec::new() },
                output: Vec::new(),
            });
        }
        let mut ids = vec![PENDING_TOKEN];
        if self.prompt_left > 0 {
            let rows = self.prompt_left.min(1 + dice.below(4));
            ids = (0..rows).map(|_| dice.token()).collect();
            self.prompt_left -= rows;
        }
        if let Some(from) = self.copied.take() {
            push_copy(batch, from, (self.slot, self.position as usize / BLOCK));
        }
        let first = batch.ids.len() as u32;
        push_rows(batch, self.slot, self.position, &ids);
        self.position += ids.len() as u32;
        let last = batch.ids.len() as u32 - 1;
        if dice.below(8) == 0 && first < last {
            let purpose = Purpose::PromptLogprob { target: dice.token(), num_top: 3 };
            batch.logits.push(LogitsRow { row: first, seq, purpose });
        }
        if self.prompt_left == 0 {
            let purpose = Purpose::Sample { output_position: self.generated };
            batch.logits.push(LogitsRow { row: last, seq, purpose });
            self.generated += 1;
        }
    }
}

/// Steps that follow each other.
pub(super) fn steps(seed: u64, num_steps: usize) -> Vec<Batch> {
    let mut dice = Dice(seed);
    let mut running: Vec<Sequence> = Vec::new();
    let mut steps = Vec::new();
    while steps.len() < num_steps {
        let is_free = |slot: &u32| running.iter().all(|sequence| sequence.slot != *slot);
        let free: Vec<u32> = (0..LIMITS.max_seqs as u32).filter(is_free).collect();
        if running.is_empty() || !free.is_empty() && dice.below(4) == 0 {
            let slot = free[dice.below(free.len() as u32) as usize];
            running.push(Sequence::new(&mut dice, slot));
        }
        let mut batch = Batch::new(2);
        batch.clear();
        for sequence in &mut running {
            if dice.below(8) > 0 {
                sequence.push(&mut dice, &mut batch);
            }
        }
        running.retain(|sequence| sequence.generated < sequence.tokens_max);
        if batch.num_seqs() > 0 {
            steps.push(batch);
        }
    }
    steps
}
