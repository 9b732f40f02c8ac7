//! The blocks of one sequence in one KV group, and all slot arithmetic.
//!
//! ```text
//! position   0 … bs-1 | bs … 2bs-1 | 2bs … 3bs-1 | …      bs = block size
//! table      slid out | block 17   | block 4     |
//! slot                  17·bs+off    4·bs+off            off = position mod bs
//! ```
//! Entries of blocks that slid out of a window stay as [`NO_SLOT`], so a block's index in the
//! table is always `position / bs`. The table owns one reference on each of its live blocks.

use pagoda_kernels::batch::NO_SLOT;

use super::block_pool::BlockId;

/// Blocks of one sequence in one group, by position.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    /// Invariant: entries below `first_live` are [`NO_SLOT`], the others are blocks.
    blocks: Vec<BlockId>,
    first_live: usize,
}

impl BlockTable {
    /// An empty table with room for `num_blocks`.
    pub fn with_room(num_blocks: usize) -> Self {
        BlockTable { blocks: Vec::with_capacity(num_blocks), first_live: 0 }
    }

    /// Number of entries, slid out ones included.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All entries; those that slid out are [`NO_SLOT`].
    pub fn entries(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Index of the first entry that is a block.
    pub fn first_live(&self) -> usize {
        self.first_live
    }

    /// The live blocks, first position first.
    pub fn live(&self) -> &[BlockId] {
        &self.blocks[self.first_live..]
    }

    /// Appends a block.
    pub fn append(&mut self, block: BlockId) {
        debug_assert_ne!(block, NO_SLOT);
        self.blocks.push(block);
    }

    /// Makes an empty table start with `num_blocks` entries that slid out already.
    pub fn start_at(&mut self, num_blocks: usize) {
        assert!(self.blocks.is_empty(), "only an empty table can start late");
        self.blocks.resize(num_blocks, NO_SLOT);
        self.first_live = num_blocks;
    }

    /// Takes the first live block out if its index is below `end`.
    pub fn slide_out(&mut self, end: usize) -> Option<BlockId> {
        if self.first_live >= end.min(self.blocks.len()) {
            return None;
        }
        let block = std::mem::replace(&mut self.blocks[self.first_live], NO_SLOT);
        self.first_live += 1;
        Some(block)
    }

    /// Takes the last live block out of the table.
    pub fn pop(&mut self) -> Option<BlockId> {
        if self.blocks.len() == self.first_live {
            return None;
        }
        self.blocks.pop()
    }

    /// Forgets the entries that slid out once no live one is left.
    pub fn clear(&mut self) {
        assert_eq!(self.blocks.len(), self.first_live, "live blocks go back to their pool first");
        self.blocks.clear();
        self.first_live = 0;
    }

    /// Where the K and V of `position` are.
    pub fn slot(&self, position: u32, block_size: u32) -> u32 {
        let block = self.blocks[(position / block_size) as usize];
        debug_assert_ne!(block, NO_SLOT, "position {position} slid out");
        block * block_size + position % block_size
    }
}

/// Index of the first block that rows from `position` on can read in a window of `window` tokens:
/// the block of `position − window + 1`.
pub fn first_block_in_window(position: u32, window: u32, block_size: u32) -> usize {
    ((position + 1).saturating_sub(window) / block_size) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_table_and_slid_out_blocks_keep_their_index() {
        let mut table = BlockTable::with_room(3);
        for block in [17, 4, 9] {
            table.append(block);
        }
        assert_eq!(table.slot(0, 16), 17 * 16);
        assert_eq!(table.slot(31, 16), 4 * 16 + 15);
        assert_eq!(table.slide_out(1), Some(17));
        assert_eq!(table.slide_out(1), None);
        assert_eq!(table.entries(), &[NO_SLOT, 4, 9]);
        assert_eq!(table.slot(32, 16), 9 * 16);
        assert_eq!((table.pop(), table.pop(), table.pop()), (Some(9), Some(4), None));
        table.clear();
        assert!(table.is_empty());
    }

    #[test]
    fn the_window_starts_at_the_block_of_the_oldest_key_read() {
        // A row at 40 with a window of 9 reads 32..=40.
        assert_eq!(first_block_in_window(40, 9, 16), 2);
        assert_eq!(first_block_in_window(40, 10, 16), 1);
        assert_eq!(first_block_in_window(3, 100, 16), 0);
        assert_eq!(first_block_in_window(16, 1, 16), 1);
    }
}
