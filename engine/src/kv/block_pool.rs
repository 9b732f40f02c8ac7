//! A fixed pool of the blocks of one KV group.
//!
//! A block is either referenced by tables or in the free list. The list is linked through the
//! block records, so a free block whose content is still wanted is taken from the middle in O(1).
//! Blocks without reusable content stand first in line; those with content follow in the order in
//! which they were freed, so the least recently used content goes first.

use pagoda_kernels::batch::NO_SLOT;

/// Number of a block within its group, `0..num_blocks`.
pub type BlockId = u32;

const NONE: u32 = NO_SLOT;

#[derive(Clone, Copy, Debug)]
struct Block {
    references: u32,
    prev: u32,
    next: u32,
}

/// Blocks of one group.
///
/// Invariant: a block is in the free list exactly when nobody references it.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    first_free: u32,
    last_free: u32,
    num_free: u32,
}

impl BlockPool {
    /// A pool of free blocks.
    pub fn new(num_blocks: u32) -> Self {
        let block = Block { references: 0, prev: NONE, next: NONE };
        let mut pool = BlockPool {
            blocks: vec![block; num_blocks as usize],
            first_free: NONE,
            last_free: NONE,
            num_free: 0,
        };
        for block in 0..num_blocks {
            pool.push_last(block);
        }
        pool
    }

    /// All blocks.
    pub fn num_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that nobody references.
    pub fn num_free(&self) -> u32 {
        self.num_free
    }

    /// Tables that reference `block`.
    pub fn references(&self, block: BlockId) -> u32 {
        self.blocks[block as usize].references
    }

    /// Takes the free block that is first in line, for new content.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.first_free;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        self.blocks[block as usize].references = 1;
        Some(block)
    }

    /// Adds a reference to a block for the sake of its content.
    pub fn share(&mut self, block: BlockId) {
        if self.blocks[block as usize].references == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].references += 1;
    }

    /// Drops a reference; the last one frees the block. `reusable` says that its content may be
    /// asked for again: it then waits at the end of the line.
    pub fn release(&mut self, block: BlockId, reusable: bool) -> bool {
        let record = &mut self.blocks[block as usize];
        assert!(record.references > 0, "block {block} was freed twice");
        record.references -= 1;
        if record.references > 0 {
            return false;
        }
        if reusable {
            self.push_last(block);
        } else {
            self.push_first(block);
        }
        true
    }

    fn push_last(&mut self, block: BlockId) {
        let last = self.last_free;
        self.blocks[block as usize].prev = last;
        self.blocks[block as usize].next = NONE;
        match self.blocks.get_mut(last as usize) {
            Some(record) => record.next = block,
            None => self.first_free = block,
        }
        self.last_free = block;
        self.num_free += 1;
    }

    fn push_first(&mut self, block: BlockId) {
        let first = self.first_free;
        self.blocks[block as usize].prev = NONE;
        self.blocks[block as usize].next = first;
        match self.blocks.get_mut(first as usize) {
            Some(record) => record.prev = block,
            None => self.last_free = block,
        }
        self.first_free = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Block { prev, next, .. } = self.blocks[block as usize];
        match self.blocks.get_mut(prev as usize) {
            Some(record) => record.next = next,
            None => self.first_free = next,
        }
        match self.blocks.get_mut(next as usize) {
            Some(record) => record.prev = prev,
            None => self.last_free = prev,
        }
        self.num_free -= 1;
    }

    /// Compares every record with `references[block]` counted from the tables: O(blocks), for
    /// simulations. Says what is wrong.
    pub fn check_integrity(&self, references: &[u32]) -> Result<(), String> {
        let mut free = 0_u32;
        let (mut block, mut prev) = (self.first_free, NONE);
        while block != NONE {
            let record = &self.blocks[block as usize];
            if record.prev != prev || record.references != 0 {
                return Err(format!("free block {block} is linked or counted wrongly: {record:?}"));
            }
            free += 1;
            if free > self.num_blocks() {
                return Err("the free list has a cycle".into());
            }
            (prev, block) = (block, record.next);
        }
        if prev != self.last_free || free != self.num_free {
            return Err(format!("{free} free blocks are linked, {} counted", self.num_free));
        }
        for (block, record) in self.blocks.iter().enumerate() {
            if record.references != references[block] {
                return Err(format!(
                    "block {block} has {} references, tables hold {}",
                    record.references, references[block]
                ));
            }
        }
        let referenced = references.iter().filter(|&&count| count > 0).count() as u32;
        if referenced + free != self.num_blocks() {
            return Err(format!("{referenced} referenced and {free} free blocks, some are lost"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_taken_last_and_in_the_order_of_its_freeing() {
        let mut pool = BlockPool::new(4);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        pool.release(2, true);
        pool.release(0, true);
        pool.release(3, false);
        assert_eq!((pool.take(), pool.take()), (Some(3), Some(2)));
        pool.check_integrity(&[0, 1, 1, 1]).unwrap();
    }

    #[test]
    fn a_shared_block_leaves_the_middle_of_the_list_and_is_freed_by_its_last_reference() {
        let mut pool = BlockPool::new(3);
        let blocks: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        for block in blocks {
            pool.release(block, true);
        }
        pool.share(1);
        pool.share(1);
        pool.check_integrity(&[0, 2, 0]).unwrap();
        assert!(!pool.release(1, true));
        assert!(pool.release(1, true));
        pool.check_integrity(&[0, 0, 0]).unwrap();
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(0), Some(2), Some(1)));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn integrity_notices_a_lost_reference() {
        let mut pool = BlockPool::new(2);
        let block = pool.take().unwrap();
        assert!(pool.check_integrity(&[0, 0]).is_err());
        assert_eq!(block, 0);
        pool.check_integrity(&[1, 0]).unwrap();
    }
}
