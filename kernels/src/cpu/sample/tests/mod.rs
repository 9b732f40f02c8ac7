//! Sampled tokens against exact probabilities, and the whole op over a team.

mod chi_square;
mod op;
mod rows;

use std::sync::Arc;

use super::draw::{Draw, Scratch};
use super::slot::Slot;
use crate::cpu::isa::Isa;
use crate::sampling::{SamplerParams, SlotInit};

/// A slot whose sequence holds `prompt` and `output`.
fn slot(params: SamplerParams, prompt: &[u32], output: &[u32]) -> Slot {
    let mut slot = Slot::new(64, Arc::default());
    slot.init(&SlotInit {
        slot: 0,
        params: Arc::new(params),
        prompt: prompt.to_vec(),
        output: output.to_vec(),
    });
    slot
}

/// The token at `output_position`.
fn draw(
    isa: Isa,
    logits: &[f32],
    slot: &Slot,
    output_position: u32,
    scratch: &mut Scratch,
) -> usize {
    isa.dispatch(Draw { logits, slot, output_position, scratch }) as usize
}
