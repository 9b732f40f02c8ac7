//! What the blocks of one KV group begin with: where a prefix hit goes on within a block.
//!
//! A block whose content can be found stands here under its parent key (what all blocks before it hold)
//! and its first tokens, with all tokens of which it holds K and V: a full block has a block's worth, the
//! last one of a prompt fewer. Who wants a beginning of them takes a copy, never the block.
//! Tables with one record a block and links both ways, so inserting and removing are O(1) but for a look
//! at who else holds the same, looking up is bounded, and nothing allocates.

use pagoda_kernels::batch::NO_SLOT;

use super::block_pool::BlockId;
use super::key::BlockKey;

/// Tokens from which on a copy is made. It moves a whole block there and back and is one launch more for
/// a GPU: about the time in which one or two rows of a prompt are computed, and rows beside others in a
/// step that reads all weights anyway cost less. It is also what chains are told apart by.
pub const COPIED_TOKENS_MIN: usize = 8;

/// Blocks of a chain that a look-up looks at, latest first: many prompts may begin alike and go on
/// differently, and the engine thread has other things to do.
const LOOKED_AT_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Entry {
    parent: BlockKey,
    /// Tokens; 0: it is in no chain.
    len: u32,
    prev: BlockId,
    next: BlockId,
}

const NOTHING: Entry = Entry { parent: BlockKey(0), len: 0, prev: NO_SLOT, next: NO_SLOT };

/// Beginnings of the blocks of one group.
#[derive(Debug)]
pub struct Beginnings {
    block_size: usize,
    /// First block of each chain; as many as a power of two at least the number of blocks.
    buckets: Vec<BlockId>,
    /// One a block.
    entries: Vec<Entry>,
    /// `[num_blocks, block_size]`, of which each block has its entry's `len`.
    tokens: Vec<u32>,
}

impl Beginnings {
    /// None of `num_blocks` blocks can be found.
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        let (num_blocks, block_size) = (num_blocks as usize, block_size as usize);
        Beginnings {
            block_size,
            buckets: vec![NO_SLOT; num_blocks.next_power_of_two()],
            entries: vec![NOTHING; num_blocks],
            tokens: vec![0; num_blocks * block_size],
        }
    }

    /// The block under `parent` that begins with most of `wanted`, and with how many; none if that is
    /// fewer than [`COPIED_TOKENS_MIN`]. Of equals the latest.
    pub fn find(&self, parent: BlockKey, wanted: &[u32]) -> Option<(BlockId, u32)> {
        let first = wanted.get(..COPIED_TOKENS_MIN)?;
        let mut best: Option<(BlockId, u32)> = None;
        let mut block = self.buckets[self.bucket(parent, first)];
        for _ in 0..LOOKED_AT_MAX {
            let Some(entry) = self.entries.get(block as usize) else { break };
            if entry.parent == parent {
                let pairs = self.tokens_of(block).iter().zip(wanted);
                let equal = pairs.take_while(|(held, wanted)| held == wanted).count() as u32;
                if equal > best.map_or(COPIED_TOKENS_MIN as u32 - 1, |(_, len)| len) {
                    best = Some((block, equal));
                    if equal as usize == wanted.len() {
                        break;
                    }
                }
            }
            block = entry.next;
        }
        best
    }

    /// Whether `block` can be found.
    pub fn holds(&self, block: BlockId) -> bool {
        self.entries[block as usize].len > 0
    }

    /// Says that `block` holds `len` tokens under `parent`, the i-th of them `token(i)`. One that stands
    /// here keeps what it has and may get more. Too few are not worth it, nor what another block begins
    /// with already.
    pub fn put(
        &mut self,
        block: BlockId,
        parent: BlockKey,
        len: usize,
        token: impl Fn(usize) -> u32,
    ) {
        let held = self.entries[block as usize].len as usize;
        if len < COPIED_TOKENS_MIN || len <= held {
            return;
        }
        let start = block as usize * self.block_size;
        for (index, to) in self.tokens[start..start + len].iter_mut().enumerate().skip(held) {
            *to = token(index);
        }
        if held > 0 {
            debug_assert_eq!(self.entries[block as usize].parent, parent);
            self.entries[block as usize].len = len as u32;
            return;
        }
        let tokens = &self.tokens[start..start + len];
        let covered = self.find(parent, tokens).is_some_and(|(_, equal)| equal as usize == len);
        if !covered {
            let bucket = self.bucket(parent, &tokens[..COPIED_TOKENS_MIN]);
            self.link(block, bucket, Entry { parent, len: len as u32, ..NOTHING });
        }
    }

    /// Forgets what `block` begins with. False if it did not stand here.
    pub fn remove(&mut self, block: BlockId) -> bool {
        if !self.holds(block) {
            return false;
        }
        let Entry { parent, prev, next, .. } = self.entries[block as usize];
        match self.entries.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => {
                let bucket = self.bucket(parent, &self.tokens_of(block)[..COPIED_TOKENS_MIN]);
                self.buckets[bucket] = next;
            }
        }
        if let Some(behind) = self.entries.get_mut(next as usize) {
            behind.prev = prev;
        }
        self.entries[block as usize] = NOTHING;
        true
    }

    fn link(&mut self, block: BlockId, bucket: usize, entry: Entry) {
        let next = std::mem::replace(&mut self.buckets[bucket], block);
        if let Some(behind) = self.entries.get_mut(next as usize) {
            behind.prev = block;
        }
        self.entries[block as usize] = Entry { next, ..entry };
    }

    fn tokens_of(&self, block: BlockId) -> &[u32] {
        let start = block as usize * self.block_size;
        &self.tokens[start..start + self.entries[block as usize].len as usize]
    }

    /// The parent is a hash already; tokens are stirred in, so that children of one parent spread.
    fn bucket(&self, parent: BlockKey, first: &[u32]) -> usize {
        let stir = |hash: u64, &token: &u32| {
            (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        };
        let hash = first.iter().fold(parent.0 as u64, stir);
        (hash ^ hash >> 32) as usize & (self.buckets.len() - 1)
    }

    /// Whether each block stands in its chain once, and no other does: O(blocks), for simulations.
    pub fn check_integrity(&self) -> Result<(), String> {
        let mut linked = 0;
        for (bucket, &first) in self.buckets.iter().enumerate() {
            let (mut block, mut prev) = (first, NO_SLOT);
            while let Some(entry) = self.entries.get(block as usize) {
                let tokens = self.tokens_of(block);
                let placed = tokens.len() >= COPIED_TOKENS_MIN
                    && self.bucket(entry.parent, &tokens[..COPIED_TOKENS_MIN]) == bucket;
                if !placed || entry.prev != prev || linked == self.entries.len() {
                    return Err(format!("block {block} stands in a wrong chain: {entry:?}"));
                }
                linked += 1;
                (prev, block) = (block, entry.next);
            }
        }
        let holding = self.entries.iter().filter(|entry| entry.len > 0).count();
        if holding != linked {
            return Err(format!("{holding} blocks begin with something, {linked} are found"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u32 = 16;

    fn put(beginnings: &mut Beginnings, block: BlockId, parent: u128, tokens: &[u32]) {
        beginnings.put(block, BlockKey(parent), tokens.len(), |index| tokens[index]);
    }

    fn counted(len: u32) -> Vec<u32> {
        (0..len).collect()
    }

    #[test]
    fn the_longest_beginning_under_the_same_parent_is_found() {
        let mut beginnings = Beginnings::new(6, BLOCK);
        let mut other = counted(16);
        other[11] = 99;
        put(&mut beginnings, 0, 5, &other);
        put(&mut beginnings, 1, 5, &counted(14));
        put(&mut beginnings, 2, 6, &counted(16));
        put(&mut beginnings, 3, 5, &counted(7));
        let find = |parent, tokens: &[u32]| beginnings.find(BlockKey(parent), tokens);
        assert_eq!(find(5, &counted(16)), Some((1, 14)));
        assert_eq!(find(5, &counted(9)), Some((1, 9)), "of equals the latest");
        assert_eq!(find(5, &other), Some((0, 16)));
        assert_eq!(find(6, &counted(15)), Some((2, 15)));
        assert_eq!(find(7, &counted(16)), None, "another parent");
        assert_eq!(find(5, &counted(7)), None, "too few are wanted");
        assert_eq!(find(5, &[0, 1, 2, 3, 4, 5, 6, 9, 8]), None, "too few are equal");
        assert!(!beginnings.holds(3), "too few are held");
    }

    #[test]
    fn what_another_begins_with_is_not_put_twice_and_a_block_may_get_more() {
        let mut beginnings = Beginnings::new(3, BLOCK);
        put(&mut beginnings, 0, 5, &counted(10));
        put(&mut beginnings, 1, 5, &counted(10));
        assert!(!beginnings.holds(1));
        put(&mut beginnings, 0, 5, &counted(13));
        put(&mut beginnings, 1, 5, &counted(12));
        assert!(!beginnings.holds(1));
        put(&mut beginnings, 0, 5, &counted(11));
        assert_eq!(beginnings.find(BlockKey(5), &counted(16)), Some((0, 13)), "it lost nothing");
        put(&mut beginnings, 1, 5, &counted(14));
        assert_eq!(beginnings.find(BlockKey(5), &counted(16)), Some((1, 14)));
        assert!(beginnings.remove(1) && !beginnings.remove(1));
        assert_eq!(beginnings.find(BlockKey(5), &counted(16)), Some((0, 13)));
    }

    #[test]
    fn a_look_up_among_many_children_of_one_parent_ends() {
        let num = 3 * LOOKED_AT_MAX as u32;
        let mut beginnings = Beginnings::new(num, BLOCK);
        let child = |number: u32| {
            let mut tokens = counted(16);
            tokens[9] = 1000 + number;
            tokens
        };
        for block in 0..num {
            put(&mut beginnings, block, 5, &child(block));
        }
        assert_eq!(beginnings.find(BlockKey(5), &child(num - 3)), Some((num - 3, 16)));
        // The first ones are out of sight, but all have nine tokens.
        assert_eq!(beginnings.find(BlockKey(5), &child(0)), Some((num - 1, 9)));
        beginnings.check_integrity().unwrap();
        // Children that begin differently do not stand in each other's way.
        let mut beginnings = Beginnings::new(num, BLOCK);
        for block in 0..num {
            let tokens: Vec<u32> = (0..16).map(|token| token + block * 100).collect();
            put(&mut beginnings, block, 5, &tokens);
        }
        let first = counted(16);
        assert_eq!(beginnings.find(BlockKey(5), &first), Some((0, 16)));
    }

    proptest! {
        /// Few parents and tokens, so that chains are long and beginnings return.
        #[test]
        fn behaves_like_a_list(
            steps in proptest::collection::vec(
                (0_u32..6, 0_u128..2, 8_usize..=16, 0_u32..3, 0_u32..3, any::<bool>()), 0..120)
        ) {
            let mut beginnings = Beginnings::new(6, BLOCK);
            let mut list: Vec<Option<(u128, Vec<u32>)>> = vec![None; 6];
            for (block, parent, len, early, late, insert) in steps {
                let mut tokens = counted(len as u32);
                tokens[3] = early;
                tokens[len - 1] = late;
                if !insert {
                    let held = list[block as usize].take().is_some();
                    prop_assert_eq!(beginnings.remove(block), held);
                } else if list[block as usize].is_none() {
                    put(&mut beginnings, block, parent, &tokens);
                    let covers = |(at, held): &(u128, Vec<u32>)| *at == parent && held.starts_with(&tokens);
                    if !list.iter().flatten().any(covers) {
                        list[block as usize] = Some((parent, tokens.clone()));
                    }
                }
                let equal = |(at, held): &(u128, Vec<u32>)| {
                    let pairs = held.iter().zip(&tokens).take_while(|(a, b)| a == b);
                    if *at == parent { pairs.count() } else { 0 }
                };
                let most = list.iter().flatten().map(equal).max().filter(|most| *most >= 8);
                let found = beginnings.find(BlockKey(parent), &tokens);
                prop_assert_eq!(found.map(|(_, len)| len as usize), most);
                if let Some((block, len)) = found {
                    let held = list[block as usize].as_ref().map(equal);
                    prop_assert_eq!(held, Some(len as usize));
                }
                for (block, held) in list.iter().enumerate() {
                    prop_assert_eq!(beginnings.holds(block as u32), held.is_some());
                }
                beginnings.check_integrity().map_err(TestCaseError::fail)?;
            }
        }
    }
}
