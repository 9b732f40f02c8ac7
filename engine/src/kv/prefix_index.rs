//! Which block of one KV group holds which content: a hash table from block key to block.
//!
//! Chained through one record a block, so it never grows, never rehashes and has no tombstones:
//! looking up, inserting and removing are O(1) and allocate nothing. Keys are hashes already.

use pagoda_kernels::batch::NO_SLOT;

use super::block_pool::BlockId;
use super::key::BlockKey;

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Option<BlockKey>,
    next: BlockId,
}

/// Content of the blocks of one group, by key.
#[derive(Debug)]
pub struct PrefixIndex {
    /// First block of each chain; as many as a power of two at least the number of blocks.
    buckets: Vec<BlockId>,
    /// One a block.
    entries: Vec<Entry>,
}

impl PrefixIndex {
    /// An empty index of `num_blocks` blocks.
    pub fn new(num_blocks: u32) -> Self {
        let num_buckets = (num_blocks as usize).next_power_of_two();
        PrefixIndex {
            buckets: vec![NO_SLOT; num_buckets],
            entries: vec![Entry { key: None, next: NO_SLOT }; num_blocks as usize],
        }
    }

    /// The block that holds `key`'s content.
    pub fn find(&self, key: BlockKey) -> Option<BlockId> {
        let mut block = self.buckets[self.bucket(key)];
        while let Some(entry) = self.entries.get(block as usize) {
            if entry.key == Some(key) {
                return Some(block);
            }
            block = entry.next;
        }
        None
    }

    /// Whether `block` holds content that can be found.
    pub fn is_keyed(&self, block: BlockId) -> bool {
        self.entries[block as usize].key.is_some()
    }

    /// Says that `block` holds `key`'s content. The first block of a content keeps it: a second
    /// one stays without a key.
    pub fn insert(&mut self, key: BlockKey, block: BlockId) -> bool {
        if self.is_keyed(block) || self.find(key).is_some() {
            return false;
        }
        let bucket = self.bucket(key);
        self.entries[block as usize] = Entry { key: Some(key), next: self.buckets[bucket] };
        self.buckets[bucket] = block;
        true
    }

    /// Forgets the content of `block`. False if it had none.
    pub fn remove(&mut self, block: BlockId) -> bool {
        let Entry { key: Some(key), next } = self.entries[block as usize] else {
            return false;
        };
        let bucket = self.bucket(key);
        if self.buckets[bucket] == block {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket];
            while self.entries[before as usize].next != block {
                before = self.entries[before as usize].next;
            }
            self.entries[before as usize].next = next;
        }
        self.entries[block as usize] = Entry { key: None, next: NO_SLOT };
        true
    }

    fn bucket(&self, key: BlockKey) -> usize {
        key.0 as usize & (self.buckets.len() - 1)
    }

    /// Whether every key leads to its block: O(blocks), for simulations. Says what is wrong.
    pub fn check_integrity(&self) -> Result<(), String> {
        for (block, entry) in self.entries.iter().enumerate() {
            if let Some(key) = entry.key
                && self.find(key) != Some(block as BlockId)
            {
                return Err(format!("the key of block {block} leads to {:?}", self.find(key)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_second_block_of_the_same_content_stays_without_a_key() {
        let mut index = PrefixIndex::new(3);
        assert!(index.insert(BlockKey(5), 1));
        assert!(!index.insert(BlockKey(5), 2));
        assert!(!index.insert(BlockKey(6), 1), "a block holds one content");
        assert_eq!(index.find(BlockKey(5)), Some(1));
        assert!(index.remove(1));
        assert!(!index.remove(1));
        assert_eq!(index.find(BlockKey(5)), None);
    }

    proptest! {
        /// Few buckets and keys, so that chains are long and keys return.
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((0_u128..12, 0_u32..6, any::<bool>()), 0..200)) {
            let mut index = PrefixIndex::new(6);
            let mut map: HashMap<u128, u32> = HashMap::new();
            for (key, block, insert) in steps {
                if insert {
                    let new = !map.contains_key(&key) && !map.values().any(|&held| held == block);
                    prop_assert_eq!(index.insert(BlockKey(key), block), new);
                    if new {
                        map.insert(key, block);
                    }
                } else {
                    let held = map.values().any(|&held| held == block);
                    prop_assert_eq!(index.remove(block), held);
                    map.retain(|_, held| *held != block);
                }
                for key in 0..12 {
                    prop_assert_eq!(index.find(BlockKey(key)), map.get(&key).copied());
                }
                index.check_integrity().map_err(TestCaseError::fail)?;
            }
        }
    }
}
