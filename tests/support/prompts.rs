//! Prompts through a runner, without a scheduler: log-probabilities of every position.
//!
//! Lays out blocks itself, scattered and in descending order, and takes away what slid out of a
//! window, so that a runner that reads the wrong block or a wrong slot cannot give the right value.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::Context;
use pagoda_engine::model::info::{InstanceInfo, KvGroupKind};
use pagoda_engine::runner::{Plan, Runner};
use pagoda_kernels::batch::{Batch, NO_SLOT};
use pagoda_kernels::sampling::{LogitsRow, Purpose, SamplerParams, SlotInit};

/// What came out for one prompt.
#[derive(Debug, Default)]
pub struct PromptValues {
    /// `[i]`: log-probability of token i + 1 after tokens up to i; the last, which no token of the
    /// prompt follows, is that of token id 0.
    pub targets: Vec<f32>,
    /// All next tokens with their log-probabilities, by length of the prefix.
    pub tops: BTreeMap<usize, Vec<(u32, f32)>>,
}

/// How prompts are run.
pub struct PromptRun<'a> {
    /// Prompts that share each step.
    pub prompts: Vec<&'a [u32]>,
    /// Rows that a prompt brings in a step, by the number of its tokens that came before.
    pub chunk: &'a dyn Fn(usize) -> usize,
    /// Lengths after which all next tokens are asked for.
    pub lengths: &'a [usize],
    /// Added to the rope position of the last row of each prompt: a planted fault.
    pub last_position_shift: i32,
}

impl PromptRun<'_> {
    /// Runs all prompts to their ends, one value for each.
    pub fn run(
        &self,
        runner: &mut dyn Runner,
        info: &InstanceInfo,
    ) -> anyhow::Result<Vec<PromptValues>> {
        let mut values: Vec<_> = self.prompts.iter().map(|_| PromptValues::default()).collect();
        let mut done = vec![0; self.prompts.len()];
        let mut plan = Plan::default();
        plan.step.batch = Batch::new(info.groups.len());
        while (0..done.len()).any(|seq| done[seq] < self.prompts[seq].len()) {
            plan.number += 1;
            let batch = &mut plan.step.batch;
            batch.clear();
            let owners = self.fill(batch, &done, info)?;
            let ticket = runner.launch(plan)?;
            plan = runner.finish(ticket)?;
            self.collect(&plan, &owners, &mut done, &mut values);
        }
        Ok(values)
    }

    /// Fills a step with the next chunk of every prompt that is not done. Returns the prompt that
    /// each sequence of the step is.
    fn fill(
        &self,
        batch: &mut Batch,
        done: &[usize],
        info: &InstanceInfo,
    ) -> anyhow::Result<Vec<usize>> {
        let mut owners = Vec::new();
        for (prompt, tokens) in self.prompts.iter().enumerate() {
            let start = done[prompt];
            let rows = start..tokens.len().min(start + (self.chunk)(start).max(1));
            if rows.is_empty() {
                continue;
            }
            self.fill_rows(batch, prompt, rows.clone(), info.vocab);
            for group in 0..info.groups.len() {
                self.fill_group(batch, prompt, rows.clone(), info, group)?;
            }
            owners.push(prompt);
        }
        Ok(owners)
    }

    /// One sequence's rows, wherever their keys go.
    fn fill_rows(&self, batch: &mut Batch, prompt: usize, rows: Range<usize>, vocab: u32) {
        let tokens = self.prompts[prompt];
        let (seq, slot) = (batch.kv_len.len() as u32, prompt as u32);
        if rows.start == 0 {
            let params = Arc::new(SamplerParams::default());
            batch.slot_inits.push(SlotInit { slot, params, prompt: vec![], output: vec![] });
        }
        batch.kv_len.push(rows.end as u32);
        batch.seq_slot.push(slot);
        for position in rows {
            let is_last = position + 1 == tokens.len();
            let shift = if is_last { self.last_position_shift } else { 0 };
            let target = tokens.get(position + 1).copied().unwrap_or_default();
            let num_top = if self.lengths.contains(&(position + 1)) { vocab } else { 0 };
            let purpose = Purpose::PromptLogprob { target, num_top };
            batch.logits.push(LogitsRow { row: batch.ids.len() as u32, seq, purpose });
            batch.ids.push(tokens[position]);
            batch.positions.push((position as u32).wrapping_add_signed(shift));
        }
        batch.query_start.push(batch.ids.len() as u32);
    }

    /// One sequence's addresses in one KV group.
    fn fill_group(
        &self,
        batch: &mut Batch,
        prompt: usize,
        rows: Range<usize>,
        info: &InstanceInfo,
        group: usize,
    ) -> anyhow::Result<()> {
        let block_size = info.block_size as usize;
        let longest = self.prompts.iter().map(|tokens| tokens.len()).max().unwrap_or_default();
        let (info, addresses) = (&info.groups[group], &mut batch.groups[group]);
        let first_seen = match info.kind {
            KvGroupKind::Full => 0,
            KvGroupKind::Window(window) => (rows.start + 1).saturating_sub(window as usize),
        };
        let held = first_seen / block_size..rows.end.div_ceil(block_size);
        let table = addresses.block_table.len();
        for block in 0..longest.div_ceil(block_size) {
            // Prompts take turns, from the last block of the cache downwards.
            let taken = (block * self.prompts.len() + prompt + 1) as u32;
            let placed = info.num_blocks.checked_sub(taken).context("too few blocks")?;
            addresses.block_table.push(if held.contains(&block) { placed } else { NO_SLOT });
        }
        addresses.table_start.push(addresses.block_table.len() as u32);
        for position in rows {
            let block = addresses.block_table[table + position / block_size] as usize;
            addresses.slots.push((block * block_size + position % block_size) as u32);
        }
        Ok(())
    }

    fn collect(
        &self,
        plan: &Plan,
        owners: &[usize],
        done: &mut [usize],
        values: &mut [PromptValues],
    ) {
        let (batch, output) = (&plan.step.batch, &plan.step.output);
        for (wanted, row) in batch.logits.iter().zip(&output.rows) {
            let prompt = owners[wanted.seq as usize];
            values[prompt].targets.push(row.logprob);
            done[prompt] += 1;
            if self.lengths.contains(&done[prompt]) {
                let (start, len) = (row.top_start as usize, row.top_len as usize);
                values[prompt].tops.insert(done[prompt], output.top[start..start + len].to_vec());
            }
        }
    }
}
