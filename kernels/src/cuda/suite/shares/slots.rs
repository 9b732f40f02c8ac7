//! What sequences cost sampling when they come: their parameters and lists put in place, counts of
//! tokens cleared and made anew for those with penalties.

use std::sync::Arc;

use super::super::Run;
use super::super::finding::Figure;
use super::{Meter, Work};
use crate::cuda::driver::DeviceBuffer;
use crate::cuda::plain::bytes_of;
use crate::cuda::sample::{SlotCount, SlotReset, SlotTakes, padded};
use crate::cuda::sample_slots::{Room, SlotRound, SlotTable};
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::{SamplerParams, SlotInit};

/// Tokens of each sequence.
const TOKENS: usize = 64;

/// The three launches for `seqs` sequences with penalties.
pub(super) fn figure(
    run: &Run<'_>,
    meter: &Meter,
    vocab: usize,
    seqs: usize,
) -> Result<Figure, KernelError> {
    let limits = Limits {
        max_tokens: seqs,
        max_seqs: seqs,
        max_logits_rows: seqs,
        vocab,
        max_model_len: seqs * TOKENS,
        max_top: 0,
    };
    let params = SamplerParams { repetition_penalty: 1.1, ..SamplerParams::default() };
    let params = Arc::new(SamplerParams { suppressed: vec![1, 2], ..params });
    let prompt: Vec<u32> = (0..TOKENS).map(|token| (token * 7919 % vocab) as u32).collect();
    let init = |slot| SlotInit {
        slot,
        params: Arc::clone(&params),
        prompt: prompt.clone(),
        output: Vec::new(),
    };
    let inits: Vec<SlotInit> = (0..seqs as u32).map(init).collect();
    let (mut table, mut round) = (SlotTable::new(&limits), SlotRound::new(&limits));
    inits.iter().try_for_each(|init| table.take(init))?;
    round.fill(&inits, 0, &table);
    let room = Room::new(&limits)?;
    let buffer = |bytes: usize| DeviceBuffer::new(run.driver, bytes, "slots");
    let filled = |bytes: &[u8]| {
        let filled = buffer(bytes.len())?;
        filled.upload(0, bytes)?;
        Ok::<_, KernelError>(filled)
    };
    let [takes, sampled, words, resets, tokens, counted] = [
        filled(bytes_of(&round.takes))?,
        filled(bytes_of(&round.params))?,
        filled(bytes_of(&round.words))?,
        filled(bytes_of(&round.resets))?,
        filled(bytes_of(&round.tokens))?,
        filled(bytes_of(&round.counted))?,
    ];
    let [slots, lists, counts] = [buffer(room.slots)?, buffer(room.lists)?, buffer(room.counts)?];
    let (driver, count, row) = (&**run.driver, round.takes.len() as u32, padded(vocab) as u32);
    let seconds = meter.watch.time(&mut |_| {
        let takes = SlotTakes {
            takes: takes.pointer(),
            params: sampled.pointer(),
            words: words.pointer(),
            slots: slots.pointer(),
            lists: lists.pointer(),
        };
        let counts = counts.pointer();
        let reset = SlotReset { counts, rows: resets.pointer(), padded: row };
        let (tokens, slots) = (tokens.pointer(), counted.pointer());
        let add = SlotCount { counts, tokens, slots, vocab: vocab as u32, padded: row };
        // SAFETY: the round's sequences, and buffers of the sizes in `Room`.
        unsafe {
            takes.launch(driver, count)?;
            reset.launch(driver, count)?;
            add.launch(driver, count)
        }
    })?;
    let work = Work::moving(seqs * (padded(vocab) + 2 * TOKENS) * 4);
    Ok(meter.figure(format!("slots of {seqs} sequences taken, {vocab} tokens"), seconds, &work))
}
