//! The KV cache's blocks over all groups: give, share, publish, slide out, take back.
//!
//! A prefix hit is the longest run of full blocks from the start of a sequence that is valid in
//! all groups: a full group needs every block, a window group those that the next row can read.
//! A block is published once its tokens are known and a launched step computes them.
//! Never allocates; all operations are O(blocks of one sequence) at most.

use super::block_pool::{BlockId, BlockPool};
use super::block_table::{BlockTable, first_block_in_window};
use super::key::BlockKey;
use super::prefix_index::PrefixIndex;
use crate::model::info::{InstanceInfo, KvGroupKind};

/// Called with (group, block) when the content of a block is lost: it was freed without a key, or
/// evicted. Simulations poison the block.
pub type LostHook = Box<dyn FnMut(usize, BlockId) + Send>;

/// Blocks of all KV groups of an instance.
pub struct PrefixCache {
    groups: Vec<Group>,
    block_size: u32,
    sharing: bool,
    on_lost: Option<LostHook>,
}

#[derive(Debug)]
struct Group {
    kind: KvGroupKind,
    pool: BlockPool,
    index: PrefixIndex,
    /// Free blocks with a key.
    num_evictable: u32,
}

/// Blocks of all groups, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Referenced by sequences.
    pub used: u64,
    /// There are.
    pub total: u64,
    /// Free, with content that can be found until something else takes them.
    pub evictable: u64,
}

impl PrefixCache {
    /// All blocks free. Without `sharing`, no block is ever found.
    pub fn new(info: &InstanceInfo, sharing: bool) -> Self {
        let group = |kind, num_blocks| Group {
            kind,
            pool: BlockPool::new(num_blocks),
            index: PrefixIndex::new(num_blocks),
            num_evictable: 0,
        };
        PrefixCache {
            groups: info.groups.iter().map(|g| group(g.kind, g.num_blocks)).collect(),
            block_size: info.block_size,
            sharing,
            on_lost: None,
        }
    }

    /// Tells `hook` of every block whose content is lost from now on.
    pub fn on_lost(&mut self, hook: LostHook) {
        self.on_lost = Some(hook);
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Longest number of blocks from the start, of those with `keys`, that can be taken over.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        if !self.sharing {
            return 0;
        }
        let mut len = keys.len();
        for group in self.groups.iter().filter(|group| group.kind == KvGroupKind::Full) {
            let held = |key: &&BlockKey| group.index.find(**key).is_some();
            len = keys[..len].iter().take_while(held).count();
        }
        // A shorter prefix asks a window group for other blocks: until all agree.
        loop {
            let before = len;
            for group in &self.groups {
                len = group.longest_window(keys, len, self.block_size);
            }
            if len == before {
                return len;
            }
        }
    }

    /// Gives a sequence without blocks the first `num_blocks` of `keys`, which
    /// [`PrefixCache::match_prefix`] found.
    pub fn attach(&mut self, tables: &mut [BlockTable], keys: &[BlockKey], num_blocks: usize) {
        for (group, table) in self.groups.iter_mut().zip(tables) {
            let first = group.first_needed(num_blocks, self.block_size);
            table.start_at(first);
            for &key in &keys[first..num_blocks] {
                let block = group.index.find(key);
                assert!(block.is_some(), "a matched block is there until it is taken");
                if let Some(block) = block {
                    group.num_evictable -= u32::from(group.pool.references(block) == 0);
                    group.pool.share(block);
                    table.append(block);
                }
            }
        }
    }

    /// Frees the blocks that rows from `position` on cannot read.
    pub fn slide_out(&mut self, tables: &mut [BlockTable], position: u32) {
        for (number, table) in tables.iter_mut().enumerate() {
            if let KvGroupKind::Window(window) = self.groups[number].kind {
                let end = first_block_in_window(position, window, self.block_size);
                while let Some(block) = table.slide_out(end) {
                    self.release_block(number, block);
                }
            }
        }
    }

    /// How many of `rows` rows after `computed` have a slot, or could get one from free blocks.
    pub fn rows_that_fit(&self, tables: &[BlockTable], computed: u32, rows: u32) -> u32 {
        let mut fit = u64::from(rows);
        for (group, table) in self.groups.iter().zip(tables) {
            let blocks = table.len() as u64 + u64::from(group.pool.num_free());
            let end = blocks * u64::from(self.block_size);
            fit = fit.min(end.saturating_sub(u64::from(computed)));
        }
        fit as u32
    }

    /// Whether [`PrefixCache::match_prefix`], which once found `matched` of `keys`, may find more
    /// by now. One look at one key: a full group needs it, window groups alone may do without.
    pub fn may_match_more(&self, keys: &[BlockKey], matched: usize) -> bool {
        let Some(&next) = keys.get(matched) else { return false };
        let mut full = self.groups.iter().filter(|group| group.kind == KvGroupKind::Full);
        self.sharing && full.all(|group| group.index.find(next).is_some())
    }

    /// Whether every group has more than `spare` (one number a group) free blocks.
    pub fn has_more_than(&self, spare: impl Iterator<Item = u32>) -> bool {
        self.groups.iter().zip(spare).all(|(group, spare)| group.pool.num_free() > spare)
    }

    /// Whether every group has `spare` (one number a group) blocks beside those that a sequence of
    /// `rows` needs if it takes over `matched` blocks which others hold already. Nothing smaller
    /// will do: an upper bound for [`PrefixCache::fits`] that looks no key up.
    pub fn may_fit(&self, matched: usize, rows: Rows, spare: impl Iterator<Item = u32>) -> bool {
        self.groups.iter().zip(spare).all(|(group, spare)| {
            group.missing(matched, rows, self.block_size) + u64::from(spare)
                <= u64::from(group.pool.num_free())
        })
    }

    /// Whether every group has `spare` (one number a group) blocks beside those that a sequence of
    /// `rows` needs if it takes over the first `matched` of `keys`.
    pub fn fits(
        &self,
        keys: &[BlockKey],
        matched: usize,
        rows: Rows,
        spare: impl Iterator<Item = u32>,
    ) -> bool {
        self.groups.iter().zip(spare).all(|(group, spare)| {
            let first = group.first_needed(matched, self.block_size);
            // Those that nobody holds leave the free blocks when they are taken over.
            let held = |key: &&BlockKey| {
                group.index.find(**key).is_some_and(|block| group.pool.references(block) > 0)
            };
            let unheld = matched - first - keys[first..matched].iter().filter(held).count();
            group.missing(matched, rows, self.block_size) + unheld as u64 + u64::from(spare)
                <= u64::from(group.pool.num_free())
        })
    }

    /// Blocks of each group that a sequence will still take for its `len` known tokens, added to
    /// `outstanding`.
    pub fn add_outstanding(&self, tables: &[BlockTable], rows: Rows, outstanding: &mut [u32]) {
        for ((group, table), sum) in self.groups.iter().zip(tables).zip(outstanding) {
            let whole = group.kind.blocks_per_seq(rows.len, rows.chunk, self.block_size);
            *sum += whole.saturating_sub(table.live().len() as u32);
        }
    }

    /// Takes blocks so that a sequence has slots for `len` tokens. The caller asked
    /// [`PrefixCache::rows_that_fit`].
    pub fn grow(&mut self, tables: &mut [BlockTable], len: u32) {
        let entries = len.div_ceil(self.block_size) as usize;
        for (number, table) in tables.iter_mut().enumerate() {
            while table.len() < entries {
                let taken = self.take_block(number);
                assert!(taken.is_some(), "rows_that_fit counted the free blocks");
                if let Some(block) = taken {
                    table.append(block);
                }
            }
        }
    }

    /// Makes blocks `from..to` of a sequence findable by their keys.
    pub fn publish(&mut self, tables: &[BlockTable], keys: &[BlockKey], from: usize, to: usize) {
        if !self.sharing {
            return;
        }
        for (group, table) in self.groups.iter_mut().zip(tables) {
            let from = from.max(table.first_live()).min(to);
            for (&key, &block) in keys[from..to].iter().zip(&table.entries()[from..to]) {
                group.index.insert(key, block);
            }
        }
    }

    /// Takes all blocks of a sequence back: last positions first, so that a prefix outlives what
    /// follows it.
    pub fn release(&mut self, tables: &mut [BlockTable]) {
        for (number, table) in tables.iter_mut().enumerate() {
            while let Some(block) = table.pop() {
                self.release_block(number, block);
            }
            table.clear();
        }
    }

    /// Tokens of the sequence's first blocks that other sequences hold as well, in the group where
    /// that is least: they survive its preemption.
    pub fn shared_tokens(&self, tables: &[BlockTable]) -> u32 {
        let shared = |(group, table): (&Group, &BlockTable)| {
            let live = table.live().iter();
            let shared = live.take_while(|&&block| group.pool.references(block) > 1).count();
            table.first_live() + shared
        };
        let blocks = self.groups.iter().zip(tables).map(shared).min().unwrap_or(0);
        blocks as u32 * self.block_size
    }

    /// Blocks of all groups.
    pub fn counts(&self) -> BlockCounts {
        let mut counts = BlockCounts::default();
        for group in &self.groups {
            let total = u64::from(group.pool.num_blocks());
            let free = u64::from(group.pool.num_free());
            counts.total += total;
            counts.used += total - free;
            counts.evictable += u64::from(group.num_evictable);
        }
        counts
    }

    /// Blocks of `group` in its pool.
    pub fn num_blocks(&self, group: usize) -> u32 {
        self.groups[group].pool.num_blocks()
    }

    fn take_block(&mut self, number: usize) -> Option<BlockId> {
        let group = &mut self.groups[number];
        let block = group.pool.take()?;
        if group.index.remove(block) {
            group.num_evictable -= 1;
            self.lost(number, block);
        }
        Some(block)
    }

    fn release_block(&mut self, number: usize, block: BlockId) {
        let group = &mut self.groups[number];
        let reusable = group.index.is_keyed(block);
        if !group.pool.release(block, reusable) {
            return;
        }
        if reusable {
            group.num_evictable += 1;
        } else {
            self.lost(number, block);
        }
    }

    fn lost(&mut self, number: usize, block: BlockId) {
        if let Some(hook) = &mut self.on_lost {
            hook(number, block);
        }
    }

    /// Compares pools and indexes with all live tables (one slice a sequence): O(blocks), for
    /// simulations. Says what is wrong.
    pub fn check_integrity<'a>(
        &self,
        sequences: impl Iterator<Item = &'a [BlockTable]>,
    ) -> Result<(), String> {
        let mut references: Vec<Vec<u32>> =
            self.groups.iter().map(|g| vec![0; g.pool.num_blocks() as usize]).collect();
        for tables in sequences {
            for (counts, table) in references.iter_mut().zip(tables) {
                for &block in table.live() {
                    counts[block as usize] += 1;
                }
            }
        }
        for (number, (group, counts)) in self.groups.iter().zip(&references).enumerate() {
            let named = |problem| format!("KV group {number}: {problem}");
            group.pool.check_integrity(counts).map_err(named)?;
            group.index.check_integrity().map_err(named)?;
            let free = (0..).zip(counts).filter(|(_, references)| **references == 0);
            let evictable = free.filter(|&(block, _)| group.index.is_keyed(block)).count();
            if evictable != group.num_evictable as usize {
                return Err(named(format!("{evictable} free blocks can be found")));
            }
        }
        Ok(())
    }
}

/// How long a sequence is and how it is computed.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Tokens.
    pub len: u32,
    /// Rows of one step at most.
    pub chunk: u32,
}

impl Group {
    /// First block that a row after `num_blocks` full blocks reads.
    fn first_needed(&self, num_blocks: usize, block_size: u32) -> usize {
        match self.kind {
            KvGroupKind::Full => 0,
            KvGroupKind::Window(window) => {
                let position = num_blocks as u32 * block_size;
                first_block_in_window(position, window, block_size).min(num_blocks)
            }
        }
    }

    /// Blocks that a sequence of `rows` takes beside the first `matched` ones.
    fn missing(&self, matched: usize, rows: Rows, block_size: u32) -> u64 {
        let whole = self.kind.blocks_per_seq(rows.len, rows.chunk, block_size);
        let taken_over = matched - self.first_needed(matched, block_size);
        u64::from(whole).saturating_sub(taken_over as u64)
    }

    /// Longest prefix of at most `len` blocks whose last window is held.
    fn longest_window(&self, keys: &[BlockKey], len: usize, block_size: u32) -> usize {
        if self.kind == KvGroupKind::Full {
            return len;
        }
        let mut longest = len;
        let mut index = len;
        while index > self.first_needed(longest, block_size) {
            index -= 1;
            if self.index.find(keys[index]).is_none() {
                // Every longer prefix that reaches this block needs it.
                longest = index;
            }
        }
        longest
    }
}

impl std::fmt::Debug for PrefixCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixCache").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
