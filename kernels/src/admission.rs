//! Checks a batch before a device sees it.
//!
//! Kernels index memory by the batch's numbers. They were made by our own scheduler, but a wrong
//! one must be an error here and not a write somewhere else, or two workers that write one place.

use crate::batch::{Batch, BlockCopy, NO_SLOT, PENDING_TOKEN};
use crate::device::Limits;
use crate::distinct::Distinct;
use crate::error::KernelError;
use crate::sampling::Purpose;
use crate::shapes::{Bounds, GroupShape};

/// What a batch may hold.
pub(crate) struct Admission {
    limits: Limits,
    bounds: Bounds,
    /// Groups that no command uses have none.
    groups: Vec<Option<Group>>,
    /// Slots of sequences.
    slots: Distinct,
}

/// What a KV group may be addressed with.
struct Group {
    blocks: usize,
    block_size: usize,
    /// Places for one token's K and V.
    places: Distinct,
    /// Blocks that are copied to.
    copied: Distinct,
}

impl Admission {
    /// Refuses limits that the program's buffers cannot hold.
    pub(crate) fn new(
        limits: Limits,
        bounds: Bounds,
        shapes: &[GroupShape],
    ) -> Result<Self, KernelError> {
        let fits = limits.max_tokens <= bounds.tokens
            && limits.max_logits_rows <= bounds.logits_rows
            && limits.max_model_len <= bounds.positions;
        if !fits {
            return Err(refused(format!("{limits:?} over {bounds:?}")));
        }
        let num_groups = shapes.iter().map(|shape| shape.group + 1).max().unwrap_or(0);
        let groups =
            (0..num_groups).map(|group| Group::of(group, shapes)).collect::<Result<_, _>>();
        Ok(Admission { limits, bounds, groups: groups?, slots: Distinct::new(limits.max_seqs) })
    }

    /// `Ok` when every number of `batch` is in range.
    pub(crate) fn check(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.check_sizes(batch)?;
        self.check_rows(batch)?;
        self.check_slots(batch)?;
        for (index, group) in self.groups.iter_mut().enumerate() {
            if let Some(group) = group {
                group.check(index, batch)?;
                group.check_copies(index, &batch.groups[index].copies, self.limits.max_seqs)?;
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
        let max_model_len = self.limits.max_model_len;
        let token = |&id: &u32| id == PENDING_TOKEN || (id as usize) < self.bounds.vocab;
        ensure(batch.ids.iter().all(token), || "a token id beyond the vocabulary".into())?;
        let position = |&position: &u32| (position as usize) < max_model_len;
        ensure(batch.positions.iter().all(position), || "a position beyond the model".into())?;
        for seq in 0..batch.num_seqs() {
            let kv_len = batch.kv_len[seq] as usize;
            let fits = (batch.query_len(seq)..=max_model_len).contains(&kv_len);
            ensure(fits, || format!("sequence {seq}: length {kv_len} out of range"))?;
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
        Ok(())
    }

    /// A slot's state belongs to one sequence and is set once in a step.
    fn check_slots(&mut self, batch: &Batch) -> Result<(), KernelError> {
        self.slots.clear();
        let used = batch.seq_slot.iter().all(|&slot| self.slots.take(slot));
        ensure(used, || format!("sequence slots {:?} out of range or twice", batch.seq_slot))?;
        self.slots.clear();
        let set = batch.slot_inits.iter().all(|init| self.slots.take(init.slot));
        ensure(set, || "a slot that is set is out of range or set twice".into())
    }
}

impl Group {
    /// What the caches of `group` have room for. Several caches of one group are addressed alike:
    /// the smallest bounds them.
    fn of(group: usize, shapes: &[GroupShape]) -> Result<Option<Self>, KernelError> {
        let mut size: Option<(usize, usize)> = None;
        for shape in shapes.iter().filter(|shape| shape.group == group) {
            let GroupShape { num_blocks: blocks, block_size, .. } = *shape;
            size = match size {
                None => Some((blocks, block_size)),
                Some((smallest, same)) if same == block_size => Some((smallest.min(blocks), same)),
                Some(_) => return Err(refused(format!("two block sizes in KV group {group}"))),
            };
        }
        Ok(size.map(|(blocks, block_size)| Group {
            blocks,
            block_size,
            places: Distinct::new(blocks * block_size),
            copied: Distinct::new(blocks),
        }))
    }

    fn check(&mut self, index: usize, batch: &Batch) -> Result<(), KernelError> {
        let Group { blocks, block_size, places, .. } = self;
        let tables = &batch.groups[index];
        let starts = &tables.table_start;
        let fits = tables.slots.len() == batch.num_tokens()
            && starts.len() == batch.num_seqs() + 1
            && starts.is_sorted()
            && starts.last().is_some_and(|&end| end as usize == tables.block_table.len());
        ensure(fits, || format!("KV group {index}: slots or block tables of a wrong size"))?;
        let covers = |(seq, &len): (usize, &u32)| {
            (len as usize).div_ceil(*block_size) <= tables.table(seq).len()
        };
        let covered = batch.kv_len.iter().enumerate().all(covers);
        ensure(covered, || format!("KV group {index}: a block table is too short"))?;
        let block = |&block: &u32| block == NO_SLOT || (block as usize) < *blocks;
        let inside = tables.block_table.iter().all(block);
        ensure(inside, || format!("KV group {index}: a block beyond {blocks} blocks"))?;
        places.clear();
        let once = tables.slots.iter().all(|&slot| slot == NO_SLOT || places.take(slot));
        ensure(once, || format!("KV group {index}: a slot beyond {blocks} blocks, or twice"))
    }

    /// Copies run side by side: what one reads no other may write.
    fn check_copies(
        &mut self,
        index: usize,
        copies: &[BlockCopy],
        most: usize,
    ) -> Result<(), KernelError> {
        self.copied.clear();
        let fits = copies.len() <= most
            && copies.iter().all(|copy| self.copied.take(copy.to))
            && copies.iter().all(|copy| self.copied.is_free(copy.from));
        ensure(fits, || format!("KV group {index}: blocks cannot be copied so: {copies:?}"))
    }
}

fn ensure(fits: bool, reason: impl FnOnce() -> String) -> Result<(), KernelError> {
    if fits { Ok(()) } else { Err(refused(reason())) }
}

fn refused(reason: String) -> KernelError {
    KernelError::Shape { op: "launch", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        let (places, copied) = (Distinct::new(32), Distinct::new(2));
        Group { blocks: 2, block_size: 16, places, copied }
    }

    #[test]
    fn no_block_is_copied_to_twice_or_from_and_to() {
        let mut group = group();
        let mut check = |copies: &[(u32, u32)], most| {
            let copy = |&(from, to): &(u32, u32)| BlockCopy { from, to };
            group.check_copies(0, &copies.iter().map(copy).collect::<Vec<_>>(), most).is_ok()
        };
        assert!(check(&[], 0));
        assert!(check(&[(0, 1)], 1));
        assert!(check(&[(1, 0)], 1), "the next step copies the other way");
        assert!(!check(&[(0, 1)], 0), "one a sequence");
        assert!(!check(&[(0, 0)], 1));
        assert!(!check(&[(0, 1), (0, 1)], 2));
        assert!(!check(&[(0, 1), (1, 0)], 2));
        assert!(!check(&[(2, 0)], 1));
        assert!(!check(&[(0, 2)], 1));
    }

    #[test]
    fn a_place_in_the_cache_is_written_once_a_step() {
        let mut group = group();
        let mut tables = |slots: [u32; 2], starts: [u32; 3]| {
            let mut batch = Batch::new(1);
            batch.ids = vec![0, 1];
            batch.query_start = vec![0, 1, 2];
            batch.kv_len = vec![1, 1];
            batch.groups[0].slots = slots.into();
            (batch.groups[0].block_table, batch.groups[0].table_start) =
                (vec![0, 1], starts.into());
            group.check(0, &batch).is_ok()
        };
        let mut check = |slots| tables(slots, [0, 1, 2]);
        assert!(check([0, 16]));
        assert!(check([0, 16]), "the next step writes there again");
        assert!(check([NO_SLOT, NO_SLOT]), "padded rows write nowhere");
        assert!(!check([3, 3]));
        assert!(!check([0, 32]));
        assert!(!tables([0, 16], [0, 0, 2]), "the first has a token and no block");
        assert!(!tables([0, 16], [0, 2, 1]));
        assert!(!tables([0, 16], [0, 1, 3]));
    }
}
