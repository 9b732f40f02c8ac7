//! The KV cache's blocks over all groups: give, share, copy, publish, slide out, take back.
//!
//! A prefix hit is the longest run of full blocks from the start of a sequence that is valid in
//! all groups: a full group needs every block, a window group those that the next row can read.
//! It goes on into the next block where some block of each group begins as wanted: of that a copy is
//! made, in which the sequence goes on by itself.
//! A block is published once its tokens are known and a launched step computes them; the last one also
//! while it is not full.
//! Never allocates; all operations are O(blocks of one sequence) at most.

use std::ops::Range;

use pagoda_kernels::batch::NO_SLOT;

use super::beginnings::Beginnings;
use super::block_pool::{BlockId, BlockPool};
use super::block_table::{BlockTable, first_block_in_window};
use super::key::{BlockKey, KeyChain};
use super::prefix_index::PrefixIndex;
use crate::model::info::{InstanceInfo, KvGroupKind};

pub use self::tail::Tail;

/// How a prefix hit goes on within a block.
mod tail;

/// Called with (group, block) when the content of a block is lost: it was freed without a key, or
/// evicted. Simulations poison the block.
pub type LostHook = Box<dyn FnMut(usize, BlockId) + Send>;

/// Blocks of all KV groups of an instance.
pub struct PrefixCache {
    groups: Vec<Group>,
    block_size: u32,
    sharing: bool,
    /// Blocks that the next step copies, with their groups: held until it is filled.
    sources: Vec<(usize, BlockId)>,
    /// A planted fault: see `forget_sources`.
    forgets_sources: bool,
    on_lost: Option<LostHook>,
}

#[derive(Debug)]
struct Group {
    kind: KvGroupKind,
    pool: BlockPool,
    index: PrefixIndex,
    beginnings: Beginnings,
    /// Free blocks whose content can be found.
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
        let groups = info.groups.iter();
        let groups = groups.map(|group| Group::new(group.kind, group.num_blocks, info.block_size));
        let copies_max = info.groups.len() * info.max_num_seqs as usize;
        PrefixCache {
            groups: groups.collect(),
            block_size: info.block_size,
            sharing,
            sources: Vec::with_capacity(copies_max),
            forgets_sources: false,
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
                    group.share(block);
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
    /// `rows` needs if it takes over the first `matched` of `keys` and a copy of `tail`.
    pub fn fits(
        &self,
        keys: &[BlockKey],
        matched: usize,
        tail: &Tail,
        rows: Rows,
        spare: impl Iterator<Item = u32>,
    ) -> bool {
        self.groups.iter().zip(spare).enumerate().all(|(number, (group, spare))| {
            let first = group.first_needed(matched, self.block_size);
            // Those that nobody holds leave the free blocks when they are taken over.
            let held = |key: &&BlockKey| {
                group.index.find(**key).is_some_and(|block| group.pool.references(block) > 0)
            };
            let unheld = matched - first - keys[first..matched].iter().filter(held).count();
            // So does what is copied, until it was.
            let source = tail.sources.get(number);
            let copied = source.is_some_and(|&source| group.pool.references(source) == 0);
            group.missing(matched, rows, self.block_size)
                + unheld as u64
                + u64::from(copied)
                + u64::from(spare)
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

    /// Makes findable which blocks hold the tokens `rows` of a sequence: full ones by their keys, and
    /// each by what it begins with. All before these was published, but for the last block, if it was
    /// not full; `token(i)` is the sequence's i-th.
    pub fn publish(
        &mut self,
        tables: &[BlockTable],
        chain: &KeyChain,
        rows: Range<u32>,
        token: impl Fn(usize) -> u32,
    ) {
        if !self.sharing {
            return;
        }
        let size = self.block_size as usize;
        let end = rows.end as usize;
        for index in rows.start as usize / size..end.div_ceil(size) {
            let (parent, len) = (chain.parent(index), (end - index * size).min(size));
            let token = |offset: usize| token(index * size + offset);
            for (group, table) in self.groups.iter_mut().zip(tables) {
                let block = table.entries()[index];
                if block == NO_SLOT {
                    continue;
                }
                if len == size && !group.index.insert(chain.keys()[index], block) {
                    // Another block has it all; or this one, from whom it was taken over.
                    if !group.index.is_keyed(block) {
                        group.beginnings.remove(block);
                    }
                    continue;
                }
                group.beginnings.put(block, parent, len, token);
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
        if group.forget(block) {
            group.num_evictable -= 1;
            self.lost(number, block);
        }
        Some(block)
    }

    fn release_block(&mut self, number: usize, block: BlockId) {
        let group = &mut self.groups[number];
        let reusable = group.is_findable(block);
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
        for &(number, block) in &self.sources {
            references[number][block as usize] += 1;
        }
        for (number, (group, counts)) in self.groups.iter().zip(&references).enumerate() {
            let named = |problem| format!("KV group {number}: {problem}");
            group.pool.check_integrity(counts).map_err(named)?;
            group.index.check_integrity().map_err(named)?;
            group.beginnings.check_integrity().map_err(named)?;
            let free = (0..).zip(counts).filter(|(_, references)| **references == 0);
            let evictable = free.filter(|&(block, _)| group.is_findable(block)).count();
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
    fn new(kind: KvGroupKind, num_blocks: u32, block_size: u32) -> Self {
        Group {
            kind,
            pool: BlockPool::new(num_blocks),
            index: PrefixIndex::new(num_blocks),
            beginnings: Beginnings::new(num_blocks, block_size),
            num_evictable: 0,
        }
    }

    /// Adds a reference to a block that can be found.
    fn share(&mut self, block: BlockId) {
        self.num_evictable -= u32::from(self.pool.references(block) == 0);
        self.pool.share(block);
    }

    fn is_findable(&self, block: BlockId) -> bool {
        self.index.is_keyed(block) || self.beginnings.holds(block)
    }

    /// Lets nobody find the block any more. False if nobody could.
    fn forget(&mut self, block: BlockId) -> bool {
        let [keyed, begun] = [self.index.remove(block), self.beginnings.remove(block)];
        keyed || begun
    }

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
