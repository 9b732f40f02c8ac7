//! sample.cu and what the host prepares for it, against the CPU's sampler on the same logits.

mod machines;
mod world;

use self::machines::{Cpu, Gpu, UNWRITTEN};
use self::world::{SLOTS, Theme, World, limits};
use super::dice::Dice;
use super::*;
use crate::batch::Batch;
use crate::cuda::sample::padded;
use crate::cuda::sample_slots::{Room, SlotRound, SlotTable};
use crate::sampling::{self, Purpose, SampleOutput, SamplerParams, SlotInit};

const IN_PROMPT: u32 = 1 << 31;

/// What slots hold, followed in the simplest way.
struct Ledger {
    vocab: usize,
    counts: Vec<u32>,
    last_tokens: Vec<u32>,
    is_counted: [bool; SLOTS],
}

impl Ledger {
    fn new(vocab: usize) -> Self {
        let unwritten = u32::from_ne_bytes([UNWRITTEN; 4]);
        Ledger {
            vocab,
            counts: vec![unwritten; SLOTS * padded(vocab)],
            last_tokens: vec![unwritten; SLOTS],
            is_counted: [false; SLOTS],
        }
    }

    fn row(&mut self, slot: usize) -> &mut [u32] {
        let padded = padded(self.vocab);
        &mut self.counts[slot * padded..][..padded]
    }

    fn step(&mut self, batch: &Batch, output: &SampleOutput) {
        let vocab = self.vocab as u32;
        for init in &batch.slot_inits {
            let slot = init.slot as usize;
            self.is_counted[slot] = init.params.needs_token_counts();
            if self.is_counted[slot] {
                let row = self.row(slot);
                row.fill(0);
                for &token in init.prompt.iter().filter(|&&token| token < vocab) {
                    row[token as usize] |= IN_PROMPT;
                }
                init.output.iter().for_each(|&token| row[token as usize] += 1);
            }
        }
        let mut refused = [false; SLOTS];
        for (row, sampled) in batch.logits.iter().zip(&output.rows) {
            let slot = batch.seq_slot[row.seq as usize] as usize;
            if matches!(row.purpose, Purpose::PromptLogprob { .. }) {
                continue;
            }
            if self.is_counted[slot] && !refused[slot] {
                self.row(slot)[sampled.token as usize] += 1;
            }
            match row.purpose {
                Purpose::Verify { draft, .. } => refused[slot] |= draft != sampled.token,
                _ => self.last_tokens[slot] = sampled.token,
            }
        }
    }
}

fn is_close(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits()
        || got.is_nan() && want.is_nan()
        || (got - want).abs() <= 4e-6 * want.abs().max(1.0)
}

fn is_same(got: &SampleOutput, want: &SampleOutput) -> bool {
    let row = |(got, want): (&sampling::SampledRow, &sampling::SampledRow)| {
        is_close(got.logprob, want.logprob)
            && sampling::SampledRow { logprob: 0.0, ..*got }
                == sampling::SampledRow { logprob: 0.0, ..*want }
    };
    let top = |(got, want): (&(u32, f32), &(u32, f32))| got.0 == want.0 && is_close(got.1, want.1);
    got.rows.len() == want.rows.len()
        && got.top.len() == want.top.len()
        && got.rows.iter().zip(&want.rows).all(row)
        && got.top.iter().zip(&want.top).all(top)
}

/// Runs `world` on both.
fn is_right(bed: &Bed, world: &World) -> Result<bool, KernelError> {
    let vocab = world.limits.vocab;
    let (mut cpu, mut gpu) = (Cpu::new(world.limits), Gpu::new(bed, world.limits, vocab % 5, 3));
    let mut ledger = Ledger::new(vocab);
    for (batch, logits) in &world.steps {
        let want = cpu.step(batch, logits);
        ledger.step(batch, &want);
        let Some(got) = gpu.step(batch, logits)? else { return Ok(false) };
        let right = is_same(&got.output, &want)
            && got.counts == ledger.counts
            && got.last_tokens == ledger.last_tokens;
        if !right {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Random steps on a device, against the CPU.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let (vocab, seed) = (dice.size(most), dice.below(1 << 20) as u64);
    let theme = dice.of(&[Theme::All, Theme::All, Theme::Limits, Theme::Lists]);
    let run = move |bed: &Bed| is_right(bed, &World::new(seed, vocab, theme));
    (format!("world {seed} of {vocab} tokens, {theme:?}"), Box::new(run))
}

/// Vocabularies, themes, and how many worlds of each.
#[cfg(test)]
const WORLDS: [(usize, Theme, u64); 7] = [
    (1, Theme::All, 1),
    (37, Theme::All, 6),
    (37, Theme::Lists, 3),
    (1000, Theme::All, 6),
    (1000, Theme::Limits, 4),
    (33_001, Theme::All, 1),
    (33_001, Theme::Limits, 1),
];

#[test]
fn tokens_and_log_probabilities_are_those_of_the_cpu() {
    for (vocab, theme, num_worlds) in WORLDS {
        for seed in 0..num_worlds {
            let bed = Bed::new(SEEDS[seed as usize % SEEDS.len()], None);
            let world = World::new(seed, vocab, theme);
            let right = is_right(&bed, &world).unwrap();
            assert!(right, "world {seed} of {vocab} tokens, {theme:?}");
        }
    }
}

#[test]
fn bits_depend_on_neither_layout_nor_order() {
    for vocab in [37, 1000] {
        let world = World::new(99, vocab, Theme::All);
        let run = |seed, extra, parts| {
            let bed = Bed::new(seed, None);
            let mut gpu = Gpu::new(&bed, world.limits, extra, parts);
            let mut step = |step: &(Batch, Vec<Vec<f32>>)| {
                let outcome = gpu.step(&step.0, &step.1).unwrap().unwrap();
                format!("{outcome:?}")
            };
            world.steps.iter().map(&mut step).collect::<String>()
        };
        let want = run(1, 0, 1);
        assert!(run(2, 3, 2) == want && run(3, 4, 9) == want);
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "logit -= slot.presence_penalty;", to: "" },
        Fault { from: "(i > 0 && entries[2 * i - 2] == token)", to: "false" },
        Fault { from: "position < slot.min_tokens ? slot.suppressed_len : 0", to: "0" },
        Fault { from: "row, !is_refused)", to: "row, true)" },
        Fault { from: "if (row.kind == SAMPLE) p.last_tokens", to: "p.last_tokens" },
        Fault { from: "if (token >= p.vocab) continue;\n        if (i <", to: "if (i <" },
        Fault { from: "logit != logit ? minus_infinity()", to: "logit != logit ? 0.0f" },
        Fault {
            from: "if (s.keys[j] < key) before",
            to: "if (s.keys[j] >> 32 < key >> 32) before",
        },
        Fault { from: "if (limit.exists) kept =", to: "if (false) kept =" },
        Fault { from: "weight < min_p", to: "weight < 0.5f * min_p" },
        Fault { from: "return is_first ? Tally{0, 0} : range.before;", to: "return {0, 0};" },
        Fault { from: "rank_key(exponent, token) <= last_key ? weight : 0.0f", to: "weight" },
        Fault { from: "key_low += 0x9e3779b9;", to: "" },
        Fault {
            from: "min_of((u64)(noise * (double)total), total - 1)",
            to: "(u64)(noise * total) + 1000000000000",
        },
        Fault {
            from: "other < token ? values[i] >= logit",
            to: "other < token ? values[i] > logit",
        },
        Fault { from: "bests[chunk] = next;", to: "" },
        Fault { from: "p.words[take.start + i]", to: "p.words[i]" },
        Fault { from: "p.lists + params.suppressed_start", to: "p.lists" },
    ];
    let themes = [(37, Theme::All), (1000, Theme::Limits), (37, Theme::Lists), (1000, Theme::All)];
    let world = |seed: u64| {
        let (vocab, theme) = themes[seed as usize % themes.len()];
        World::new(seed, vocab, theme)
    };
    let worlds: Vec<World> = (0..12).map(world).collect();
    assert_caught(&faults, |bed| {
        worlds.iter().try_fold(true, |right, world| Ok(right && is_right(bed, world)?))
    });
}

fn counted(slot: u32, prompt: usize, output: usize) -> SlotInit {
    let params = SamplerParams { presence_penalty: 1.0, ..SamplerParams::default() };
    let (prompt, output) = (vec![1; prompt], vec![2; output]);
    SlotInit { slot, params: Arc::new(params), prompt, output }
}

#[test]
fn slots_are_taken_in_rounds_that_fit() {
    let limits = limits(10);
    let (mut round, mut table) = (SlotRound::new(&limits), SlotTable::new(&limits));
    let plain = SlotInit { params: Arc::default(), ..counted(1, 9, 9) };
    let inits = [counted(0, 30, 20), plain, counted(4, 10, 4), counted(2, 1, 0), counted(3, 99, 9)];
    inits.iter().for_each(|init| table.take(init).unwrap());
    let mut rounds = Vec::new();
    let mut next = 0;
    while next < inits.len() {
        next = round.fill(&inits, next, &table);
        let slots: Vec<u32> = round.takes.iter().map(|take| take.slot).collect();
        let counted = round.counted.iter();
        let lens =
            counted.map(|slot| (slot.counts_row, slot.start, slot.prompt_len, slot.output_len));
        assert!(round.resets.iter().eq(round.counted.iter().map(|slot| &slot.counts_row)));
        rounds.push((slots, lens.collect::<Vec<_>>(), round.tokens.len()));
    }
    let want = [
        (vec![0, 1, 4], vec![(0, 0, 30, 20), (4, 50, 10, 4)], 64),
        (vec![2], vec![(2, 0, 1, 0)], 1),
        (vec![3], vec![(3, 0, 64, 0)], 64),
    ];
    assert_eq!(rounds, want);
}

fn allowing(slot: u32, allowed: usize) -> SlotInit {
    let params = SamplerParams { allowed: vec![3; allowed], ..SamplerParams::default() };
    SlotInit { params: Arc::new(params), ..counted(slot, 0, 0) }
}

#[test]
fn lists_are_brought_over_in_rounds_that_fit() {
    let limits = crate::device::Limits { max_seqs: 12, ..limits(10) };
    let (mut round, mut table) = (SlotRound::new(&limits), SlotTable::new(&limits));
    let inits: Vec<_> = (0..12).map(|slot| allowing(slot, 4352)).collect();
    inits.iter().for_each(|init| table.take(init).unwrap());
    assert_eq!(round.fill(&inits, 0, &table), 8);
    assert_eq!(round.words.len(), round.max_words());
    assert_eq!((round.takes[7].start, round.takes[7].len), (7 * 4352, 4352));
    assert_eq!(round.fill(&inits, 8, &table), 12);
}

#[test]
fn what_no_slot_holds_is_refused() {
    let table = &mut SlotTable::new(&limits(10));
    assert!(table.take(&allowing(4, 4352)).is_ok());
    assert_eq!(table.params[4].allowed_len, 4352);
    assert!(table.take(&allowing(4, 4353)).is_err());
    assert!(Room::new(&limits(0)).is_err());
    assert!(Room::new(&limits(2 << 20)).is_err());
}
