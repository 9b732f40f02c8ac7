//! Random steps of sequences: parameters, rows, logits.

use crate::batch::Batch;
use crate::cuda::tests::dice::Dice;
use crate::device::Limits;
use crate::sampling::{self, Purpose, SamplerParams, SlotInit};
use std::sync::Arc;

pub(super) const SLOTS: usize = 5;

pub(super) fn limits(vocab: usize) -> Limits {
    let (max_tokens, max_logits_rows) = (64, 64);
    Limits { max_tokens, max_seqs: SLOTS, max_logits_rows, vocab, max_model_len: 64, max_top: 6 }
}

/// What the sequences of a world ask for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Theme {
    /// Anything.
    All,
    /// Many tokens that weigh alike, and limits among them.
    Limits,
    /// Biased and suppressed tokens.
    Lists,
}

fn logits(dice: &mut Dice, vocab: usize, theme: Theme) -> Vec<f32> {
    let kind = match theme {
        Theme::All => dice.below(11),
        Theme::Limits | Theme::Lists => 11 + dice.below(2),
    };
    let width = [0.02, 0.5, 2.0, 6.0, 30.0][dice.below(5)];
    let mut row: Vec<f32> = (0..vocab)
        .map(|token| match kind {
            // One value for all.
            0 => 3.5,
            // Few values.
            1 => (dice.bell() * 2.0).round() * 1.5,
            2 => dice.bell() * 2.0 - 12.0,
            // Broken.
            3 => match dice.below(20) {
                0 => f32::NAN,
                1 => f32::NEG_INFINITY,
                _ => dice.bell() * 3.0,
            },
            // Impossible.
            4 => [f32::NAN, f32::NEG_INFINITY][dice.below(2)],
            // Neighbours in bits.
            5 => f32::from_bits(1.0f32.to_bits() + token as u32 % 7),
            6 => [0.0, -0.0][dice.below(2)],
            // All but one beyond what is looked at first.
            7 => [-10.5 - 2.0 * dice.unit(), 0.0][usize::from(token == vocab / 3)],
            11 => dice.bell(),
            // Terraces.
            12 => (token % 3) as f32 * 0.8 + 0.001 * dice.bell(),
            _ => dice.bell() * width,
        })
        .collect();
    match kind {
        2 => (0..5).for_each(|_| row[dice.below(vocab)] = 6.0 + 2.0 * dice.bell()),
        3 if dice.once_in(3) => row[dice.below(vocab)] = f32::INFINITY,
        8 => row[dice.below(vocab)] = 30.0,
        _ => {}
    }
    row
}

fn params(dice: &mut Dice, vocab: usize, theme: Theme) -> SamplerParams {
    match theme {
        Theme::All => any_params(dice, vocab),
        Theme::Limits => SamplerParams {
            temperature: 0.5 + dice.unit(),
            seed: dice.below(1 << 30) as u64,
            top_k: if dice.once_in(3) { 0 } else { 1 + dice.below(vocab) as u32 },
            top_p: 0.3 + 0.69 * dice.unit(),
            ..SamplerParams::default()
        },
        Theme::Lists => SamplerParams {
            temperature: dice.below(2) as f32,
            min_tokens: 9,
            suppressed: dice.tokens(30, vocab),
            logit_bias: bias(dice, vocab, 2.0),
            ..SamplerParams::default()
        },
    }
}

fn any_params(dice: &mut Dice, vocab: usize) -> SamplerParams {
    let temperature = match dice.below(6) {
        0 => 0.0,
        1 => [5e-6, 1e-4][dice.below(2)],
        _ => 0.05 + 2.0 * dice.unit(),
    };
    let seed = (dice.below(1 << 30) as u64) << 20 | dice.below(1 << 20) as u64;
    let choice = dice.below(4) as u32;
    let mut params = SamplerParams { temperature, seed, choice, ..SamplerParams::default() };
    if dice.once_in(2) {
        let most = if dice.once_in(2) { 60 } else { vocab + 10 };
        params.top_k = 1 + dice.below(most) as u32;
    }
    if dice.once_in(2) {
        params.top_p = [dice.unit(), 0.999, f32::MIN_POSITIVE, dice.unit()][dice.below(4)];
    }
    if dice.once_in(4) {
        params.min_p = [dice.unit() * dice.unit(), 1.0][usize::from(dice.once_in(8))];
    }
    if dice.once_in(3) {
        params.frequency_penalty = 4.0 * dice.unit() - 2.0;
        params.presence_penalty = [4.0 * dice.unit() - 2.0, 0.0][dice.below(2)];
        params.repetition_penalty = [0.5 + 1.5 * dice.unit(), 1.0][dice.below(2)];
    }
    if dice.once_in(4) {
        params.min_tokens = dice.below(12) as u32;
        params.suppressed = match dice.below(3) {
            0 => (0..vocab.min(50) as u32).collect(),
            _ => dice.tokens(6, vocab + 2),
        };
    }
    if dice.once_in(4) {
        params.logit_bias = bias(dice, vocab, 100.0);
    }
    if dice.once_in(6) {
        params.allowed = match dice.below(4) {
            0 => vec![vocab as u32 + 1, vocab as u32 + 5],
            _ => dice.tokens(30, vocab + 3),
        };
        params.allowed.sort_unstable();
    }
    params.num_logprobs = [None, Some(dice.below(8) as u32)][dice.below(2)];
    params
}

/// Some tokens twice.
fn bias(dice: &mut Dice, vocab: usize, most: f32) -> Vec<(u32, f32)> {
    let tokens = dice.tokens(20, vocab + 3).into_iter();
    let entry = |token| (token, most * (2.0 * dice.unit() - 1.0));
    let mut entries: Vec<_> = tokens.map(entry).collect();
    entries.sort_by_key(|entry| entry.0);
    entries
}

/// The lowest of the largest, NaN aside: what a greedy sequence takes.
fn likely(row: &[f32]) -> u32 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&logit| logit == best).unwrap_or(0) as u32
}

/// Some steps of sequences that come, go on, and have their slots taken over.
pub(super) struct World {
    pub(super) limits: Limits,
    /// With the logits of each batch's rows.
    pub(super) steps: Vec<(Batch, Vec<Vec<f32>>)>,
}

impl World {
    pub(super) fn new(seed: u64, vocab: usize, theme: Theme) -> Self {
        let mut dice = Dice(seed << 32 ^ vocab as u64);
        let mut known = [false; SLOTS];
        let steps = (0..3).map(|_| Self::step(&mut dice, vocab, theme, &mut known)).collect();
        World { limits: limits(vocab), steps }
    }

    fn step(
        dice: &mut Dice,
        vocab: usize,
        theme: Theme,
        known: &mut [bool; SLOTS],
    ) -> (Batch, Vec<Vec<f32>>) {
        let mut batch = Batch::new(0);
        batch.clear();
        let mut rows: Vec<Vec<f32>> = Vec::new();
        let (first, turn) = (dice.below(SLOTS), 1 + dice.below(SLOTS - 1));
        for seq in 0..1 + dice.below(SLOTS) {
            let slot = (first + seq * turn) % SLOTS;
            batch.seq_slot.push(slot as u32);
            if !known[slot] || dice.once_in(3) {
                known[slot] = true;
                batch.slot_inits.push(init(dice, vocab, theme, slot as u32));
            }
            let purposes = purposes(dice, vocab);
            for purpose in &purposes {
                let again = dice.once_in(3);
                let last = rows.last().filter(|_| again).cloned();
                let logits = last.unwrap_or_else(|| logits(dice, vocab, theme));
                let mut purpose = *purpose;
                if let Purpose::Verify { draft, .. } = &mut purpose {
                    *draft = [likely(&logits), *draft][usize::from(dice.once_in(4))];
                }
                let (row, seq) = (rows.len() as u32, seq as u32);
                batch.logits.push(sampling::LogitsRow { row, seq, purpose });
                rows.push(logits);
            }
            batch.ids.extend(purposes.iter().map(|_| 0));
            batch.positions.extend(0..purposes.len() as u32);
            batch.query_start.push(rows.len() as u32);
            batch.kv_len.push(purposes.len() as u32);
        }
        (batch, rows)
    }
}

fn init(dice: &mut Dice, vocab: usize, theme: Theme, slot: u32) -> SlotInit {
    let params = Arc::new(params(dice, vocab, theme));
    let (prompt, output) = if params.needs_token_counts() {
        (dice.tokens(30, vocab + 1), dice.tokens(20, vocab.min(8)))
    } else {
        (Vec::new(), Vec::new())
    };
    SlotInit { slot, params, prompt, output }
}

/// Of the rows of one sequence; drafts are random.
fn purposes(dice: &mut Dice, vocab: usize) -> Vec<Purpose> {
    let mut purposes = Vec::new();
    if dice.once_in(4) {
        let prompt = |dice: &mut Dice| {
            let (target, num_top) = (dice.below(vocab) as u32, dice.below(9) as u32);
            Purpose::PromptLogprob { target, num_top }
        };
        purposes.extend((0..1 + dice.below(3)).map(|_| prompt(dice)));
    }
    let mut output_position = dice.below(12) as u32;
    if dice.once_in(2) {
        for _ in 0..1 + dice.below(3) {
            purposes.push(Purpose::Verify { output_position, draft: dice.below(vocab) as u32 });
            output_position += 1;
        }
    }
    if !dice.once_in(4) {
        purposes.push(Purpose::Sample { output_position });
    }
    purposes
}
