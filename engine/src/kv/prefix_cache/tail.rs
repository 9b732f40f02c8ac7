//! How a prefix hit goes on within a block: in a copy of one that begins as wanted.
//!
//! What is copied is held from the look-up that found it until the step that copies is filled: copies
//! run ahead of all that a step writes, so from then on others may have it. Must never let a block be
//! copied that the same step gives to anybody.

use pagoda_kernels::batch::{BlockCopy, GroupBatch};

use super::PrefixCache;
use crate::kv::block_pool::BlockId;
use crate::kv::block_table::BlockTable;
use crate::kv::key::BlockKey;

/// Where a prefix hit goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Tokens: 0 if it does not, else fewer than a block has.
    pub tokens: u32,
    /// A block of each group that begins with them; none if it does not go on.
    pub sources: Vec<BlockId>,
}

impl Tail {
    /// Room for a source in each of `num_groups` groups.
    pub fn with_room(num_groups: usize) -> Self {
        Tail { tokens: 0, sources: Vec::with_capacity(num_groups) }
    }

    /// The hit ends with its last full block.
    pub fn clear(&mut self) {
        self.tokens = 0;
        self.sources.clear();
    }
}

impl PrefixCache {
    /// Plants a defect: blocks that are to be copied may be given to others before. Simulations must
    /// notice it.
    pub fn forget_sources(&mut self) {
        self.forgets_sources = true;
    }

    /// Looks up how many of the `wanted` tokens some block under `parent` begins with, in all groups:
    /// those that follow the blocks which [`PrefixCache::match_prefix`] found.
    pub fn match_tail(&self, parent: BlockKey, wanted: &[u32], tail: &mut Tail) {
        tail.clear();
        if !self.sharing {
            return;
        }
        // A whole block would have been found by its key.
        let mut tokens = wanted.len().min(self.block_size as usize - 1) as u32;
        for group in &self.groups {
            let Some((block, equal)) = group.beginnings.find(parent, &wanted[..tokens as usize])
            else {
                tail.clear();
                return;
            };
            tokens = equal;
            tail.sources.push(block);
        }
        tail.tokens = tokens;
    }

    /// Appends a block of its own to each table of a sequence, to become a copy of `tail`'s, which is
    /// held until [`PrefixCache::let_sources_go`]. False, and nothing, if some group has no block left.
    pub fn copy_tail(
        &mut self,
        tables: &mut [BlockTable],
        tail: &Tail,
        batch: &mut [GroupBatch],
    ) -> bool {
        let held = self.sources.len();
        for (number, &source) in tail.sources.iter().enumerate() {
            self.hold_source(number, source);
        }
        if self.groups.iter().any(|group| group.pool.num_free() == 0) {
            self.let_sources_go_from(held);
            return false;
        }
        for (number, (table, group)) in tables.iter_mut().zip(batch).enumerate() {
            if let Some(to) = self.take_block(number) {
                table.append(to);
                group.copies.push(BlockCopy { from: tail.sources[number], to });
            }
        }
        true
    }

    /// The step that copies is filled: whoever takes its sources now writes behind it.
    pub fn let_sources_go(&mut self) {
        self.let_sources_go_from(0);
    }

    fn hold_source(&mut self, number: usize, block: BlockId) {
        if !self.forgets_sources {
            self.groups[number].share(block);
            self.sources.push((number, block));
        }
    }

    fn let_sources_go_from(&mut self, held: usize) {
        while self.sources.len() > held
            && let Some((number, block)) = self.sources.pop()
        {
            self.release_block(number, block);
        }
    }
}
