//! Checks a batch before the team sees it.
//!
//! Kernels index memory by the batch's numbers. They were made by our own scheduler, but a wrong
//! one must be an error here and not a write somewhere else.

use crate::batch::{Batch, NO_SLOT, PENDING_TOKEN};
use crate::cpu::kv::KvCache;
use crate::cpu::program::Bounds;
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::Purpose;

/// What a batch may hold.
pub(super) struct Admission {
    limits: Limits,
    bounds: Bounds,
    /// Blocks and block size of each group; groups that no command uses have none.
    groups: Vec<Option<(usize, usize)>>,
}

impl Admission {
    /// Refuses limits that the program's buffers cannot hold.
    pub(super) fn new(
        limits: Limits,
        bounds: Bounds,
        caches: &[(usize, KvCache)],
    ) -> Result<Self, KernelError> {
        let fits = limits.max_tokens <= bounds.tokens
            && limits.max_logits_rows <= bounds.logits_rows
            && limits.max_model_len <= bounds.positions;
        if !fits {
            return Err(refused(format!("{limits:?} over {bounds:?}")));
        }
        let mut groups = vec![None; caches.iter().map(|(group, _)| group + 1).max().unwrap_or(0)];
        for (group, cache) in caches {
            let size = (cache.spec().num_blocks, cache.block_size());
            match &mut groups[*group] {
                // Several caches of one group are addressed alike: the smallest bounds them.
                Some((blocks, block_size)) if *block_size == size.1 => {
                    *blocks = size.0.min(*blocks)
                }
                Some(_) => return Err(refused(format!("two block sizes in KV group {group}"))),
                unknown => *unknown = Some(size),
            }
        }
        Ok(Admission { limits, bounds, groups })
    }

    /// `Ok` when every number of `batch` is in range.
    pub(super) fn check(&self, batch: &Batch) -> Result<(), KernelError> {
        self.check_sizes(batch)?;
        self.check_rows(batch)?;
        for (group, size) in self.groups.iter().enumerate() {
            if let Some((blocks, block_size)) = *size {
                self.check_group(batch, group, blocks, block_size)?;
            }
        }
        Ok(())
    }

    fn check_sizes(&self, batch: &Batch) -> Result<(), KernelError> {
        let (tokens, seqs) = (batch.num_tokens(), batch.num_seqs());
        let fits = tokens <= self.limits.max_tokens
            && seqs <= self.limits.max_seqs
            && batch.logits.len() <= self.limits.max_logits_rows
            && batch.positions.len() == tokens
            && batch.seq_slot.len() == seqs
            && batch.query_start.len() == seqs + 1
            && batch.groups.len() >= self.groups.len();
        let ends = batch.query_start.first() == Some(&0)
            && batch.query_start.last().map(|&end| end as usize) == Some(tokens)
            && batch.query_start.is_sorted();
        ensure(fits && ends, || {
            format!("{tokens} rows of {seqs} sequences, starts {:?}", batch.query_start)
        })
    }

    fn check_rows(&self, batch: &Batch) -> Result<(), KernelError> {
        let Limits { max_seqs, max_model_len, .. } = self.limits;
        let token = |&id: &u32| id == PENDING_TOKEN || (id as usize) < self.bounds.vocab;
        ensure(batch.ids.iter().all(token), || "a token id beyond the vocabulary".into())?;
        let position = |&position: &u32| (position as usize) < max_model_len;
        ensure(batch.positions.iter().all(position), || "a position beyond the model".into())?;
        for seq in 0..batch.num_seqs() {
            let kv_len = batch.kv_len[seq] as usize;
            let fits = (batch.seq_slot[seq] as usize) < max_seqs
                && (batch.query_len(seq)..=max_model_len).contains(&kv_len);
            ensure(fits, || format!("sequence {seq}: slot or length {kv_len} out of range"))?;
        }
        for row in &batch.logits {
            let target = match row.purpose {
                Purpose::Sample { .. } => 0,
                Purpose::PromptLogprob { target, .. } => target,
                Purpose::Verify { draft, .. } => draft,
            };
            let fits = (row.row as usize) < batch.num_tokens()
                && (row.seq as usize) < batch.num_seqs()
                && (target as usize) < self.limits.vocab;
            ensure(fits, || format!("{row:?} out of range"))?;
        }
        let slots = batch.slot_inits.iter().all(|init| (init.slot as usize) < max_seqs);
        ensure(slots, || "a slot out of range".into())
    }

    fn check_group(
        &self,
        batch: &Batch,
        group: usize,
        blocks: usize,
        block_size: usize,
    ) -> Result<(), KernelError> {
        let tables = &batch.groups[group];
        let stride = tables.table_stride;
        let slot = |&slot: &u32| slot == NO_SLOT || (slot as usize) < blocks * block_size;
        let block = |&block: &u32| block == NO_SLOT || (block as usize) < blocks;
        let fits = tables.slots.len() == batch.num_tokens()
            && Some(tables.block_table.len()) == stride.checked_mul(batch.num_seqs())
            && batch.kv_len.iter().all(|&len| (len as usize).div_ceil(block_size) <= stride);
        ensure(fits, || format!("KV group {group}: slots or block table of a wrong size"))?;
        let inside = tables.slots.iter().all(slot) && tables.block_table.iter().all(block);
        ensure(inside, || format!("KV group {group}: a slot or block beyond {blocks} blocks"))
    }
}

fn ensure(fits: bool, reason: impl FnOnce() -> String) -> Result<(), KernelError> {
    if fits { Ok(()) } else { Err(refused(reason())) }
}

fn refused(reason: String) -> KernelError {
    KernelError::Shape { op: "launch", reason }
}
