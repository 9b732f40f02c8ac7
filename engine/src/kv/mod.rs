//! Bookkeeping of the paged KV cache: which blocks hold which tokens of which sequence.
//!
//! The caches themselves are the device's; here are only block numbers. Everything is allocated
//! once; taking, sharing and freeing a block is O(1).

/// A fixed pool of blocks with reference counts and an LRU free list.
pub mod block_pool;

/// The blocks of one sequence in one group, and all slot arithmetic.
pub mod block_table;

/// What a full block holds, as a 128-bit hash.
pub mod key;

/// Which block holds which content, by key.
pub mod prefix_index;

/// What blocks begin with: where a prefix hit goes on within a block.
pub mod beginnings;

/// The blocks of all groups: give, share, publish, slide out, take back.
pub mod prefix_cache;
