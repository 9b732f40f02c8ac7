//! The rows of a sequence as batch data: ids, positions, slots, logits rows, block tables.

use pagoda_kernels::batch::{Batch, PENDING_TOKEN};
use pagoda_kernels::sampling::{LogitsRow, Purpose, SlotInit};

use super::record::Entry;
use crate::sequence::Sequence;

/// Appends `entry`'s rows of `sequence`: known tokens, perhaps a pending one, then `drafts`; and its
/// block tables, which hold a block for every row and stay as they are until the launch. Returns
/// the number of logits rows.
///
/// ```text
/// position   base … known-1 | known    | end …
/// id         tokens         | PENDING  | drafts
/// ```
pub fn push_rows(
    batch: &mut Batch,
    sequence: &mut Sequence,
    entry: &Entry,
    drafts: &[u32],
    block_size: u32,
) -> u32 {
    let first_row = batch.num_tokens() as u32;
    let index = batch.num_seqs() as u32;
    let known = sequence.known();
    for position in entry.base..entry.end() {
        let is_known = position < known;
        let id = if is_known { sequence.token(position as usize) } else { PENDING_TOKEN };
        batch.ids.push(id);
    }
    batch.ids.extend_from_slice(drafts);
    let end = entry.end() + drafts.len() as u32;
    batch.positions.extend(entry.base..end);
    for (group, table) in batch.groups.iter_mut().zip(&sequence.tables) {
        group.slots.extend((entry.base..end).map(|position| table.slot(position, block_size)));
        group.push_table(table.entries().iter().copied());
    }
    batch.query_start.push(batch.ids.len() as u32);
    batch.kv_len.push(end);
    batch.seq_slot.push(sequence.slot);
    if !sequence.slot_is_set {
        batch.slot_inits.push(slot_init(sequence));
        sequence.slot_is_set = true;
    }
    let before = batch.logits.len();
    let row_of = |position: u32| first_row + position - entry.base;
    let mut push = |position: u32, purpose| {
        batch.logits.push(LogitsRow { row: row_of(position), seq: index, purpose });
    };
    if let Some(num_top) = sequence.prompt_top {
        let wanted = sequence.prompt_rows_sent.max(entry.base)..sequence.num_prompt_rows();
        for position in wanted.start..wanted.end.min(entry.end()) {
            let target = sequence.prompt[position as usize + 1];
            push(position, Purpose::PromptLogprob { target, num_top });
        }
    }
    if entry.samples {
        let first = sequence.output.len() as u32 + sequence.pending;
        for (offset, &draft) in (0_u32..).zip(drafts) {
            let output_position = first + offset;
            push(entry.end() - 1 + offset, Purpose::Verify { output_position, draft });
        }
        let output_position = first + drafts.len() as u32;
        push(end - 1, Purpose::Sample { output_position });
    }
    (batch.logits.len() - before) as u32
}

/// What the device must know when the sequence takes its slot. The token lists travel in buffers
/// that come back with the step.
fn slot_init(sequence: &mut Sequence) -> SlotInit {
    let needed = sequence.sampler.needs_token_counts();
    let (mut prompt, mut output) = sequence.count_buffers.take().unwrap_or_default();
    prompt.clear();
    output.clear();
    if needed {
        prompt.extend_from_slice(&sequence.prompt);
        output.extend_from_slice(&sequence.output);
    }
    SlotInit { slot: sequence.slot, params: sequence.sampler.clone(), prompt, output }
}
