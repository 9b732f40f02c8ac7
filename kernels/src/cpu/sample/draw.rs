//! One sampled token: adjust, temperature, select, and an inverse CDF over what is left.
//!
//! The tokens left are walked in ascending order, so that one uniform number decides and a token
//! depends on nothing but its own logits, parameters and noise.

use super::adjust::{adjust, is_adjusted, lowest_possible};
use super::passes::{self, CHUNK};
use super::philox::uniform;
use super::select::Selection;
use super::slot::Slot;
use crate::cpu::isa::Kernel;
use crate::cpu::simd::Simd;

/// Temperatures below this are greedy: logits divided by less would only overflow.
const TEMPERATURE_MIN: f32 = 1e-5;

/// One worker's memory for the row at hand, allocated at start.
pub(crate) struct Scratch {
    /// Adjusted logits, then exponents; whole chunks, −∞ beyond the vocabulary.
    exponents: Vec<f32>,
    /// `e^exponent` of the tokens that may be drawn; whole chunks.
    weights: Vec<f32>,
    /// Sum of the weights of each chunk.
    sums: Vec<f64>,
    selection: Selection,
}

impl Scratch {
    /// For a vocabulary of `vocab` tokens.
    pub(crate) fn new(vocab: usize) -> Scratch {
        let padded = vocab.next_multiple_of(CHUNK);
        Scratch {
            exponents: vec![f32::NEG_INFINITY; padded],
            weights: vec![0.0; padded],
            sums: vec![0.0; padded / CHUNK],
            selection: Selection::new(vocab),
        }
    }

    /// Bytes of such memory.
    pub(crate) fn bytes(vocab: usize) -> usize {
        let padded = vocab.next_multiple_of(CHUNK);
        2 * padded * size_of::<f32>() + padded / CHUNK * size_of::<f64>() + Selection::bytes(vocab)
    }
}

/// Samples output token number `output_position` of the sequence in `slot`.
pub(crate) struct Draw<'a> {
    /// `[V]` raw logits.
    pub(crate) logits: &'a [f32],
    /// Parameters and counts.
    pub(crate) slot: &'a Slot,
    /// Tokens generated before this one.
    pub(crate) output_position: u32,
    /// For V tokens.
    pub(crate) scratch: &'a mut Scratch,
}

impl Kernel for Draw<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self) -> u32 {
        let Draw { logits, slot, output_position, scratch } = self;
        let params = &*slot.params;
        let is_greedy = params.temperature < TEMPERATURE_MIN;
        let best = if is_greedy && !is_adjusted(params, output_position) {
            passes::argmax::<S>(logits)
        } else {
            let adjusted = &mut scratch.exponents[..logits.len()];
            adjust(logits, params, &slot.counts, output_position, adjusted);
            passes::argmax::<S>(adjusted)
        };
        let Some((best, largest)) = best else {
            return lowest_possible(params, output_position, logits.len());
        };
        if is_greedy {
            return best as u32;
        }
        let Scratch { exponents, weights, sums, selection } = scratch;
        passes::exponentials::<S>(exponents, weights, largest, 1.0 / params.temperature);
        selection.apply::<S>(params, exponents, weights);
        let total = passes::chunk_sums::<S>(weights, sums);
        let noise = uniform(params.seed, params.choice, output_position);
        token_at(noise * total, weights, sums) as u32
    }
}

/// The first token at which the running sum of weights exceeds `target`.
fn token_at(target: f64, weights: &[f32], sums: &[f64]) -> usize {
    let mut sum = 0.0;
    // Rounding may leave a walk short of the target: then the last chunk or token with a weight is
    // the one.
    let mut chosen = (0, 0.0);
    for (index, &chunk_sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        chosen = (index * CHUNK, sum);
        sum += chunk_sum;
        if sum > target {
            break;
        }
    }
    let (start, mut sum) = chosen;
    let mut last = start;
    let chunk = weights[start..start + CHUNK].iter().enumerate();
    for (offset, &weight) in chunk.filter(|(_, weight)| **weight > 0.0) {
        last = start + offset;
        sum += f64::from(weight);
        if sum > target {
            break;
        }
    }
    last
}
