//! Block keys: what a full block of the KV cache holds, as a 128-bit hash.
//!
//! `key = blake3(parent key, tokens)`, keyed by the instance's arithmetic; the first parent is a
//! hash of tenant salt and adapter. Equal keys mean equal K and V bits, so only equal keys may
//! share a block. The hash is collision resistant: tenants cannot craft each other's keys.
//! Never hashes a block whose tokens are not all known.

/// Names the contents of a full block, and by its parents those of all blocks before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey(pub u128);

/// Hashes blocks of one instance.
#[derive(Clone, Debug)]
pub struct KeyHasher {
    key: [u8; 32],
    block_size: usize,
}

impl KeyHasher {
    /// A hasher for blocks of `block_size` tokens computed with the arithmetic `numerics`.
    pub fn new(numerics: &str, block_size: u32) -> Self {
        let key = blake3::derive_key("pagoda 2026 KV block key", numerics.as_bytes());
        KeyHasher { key, block_size: block_size as usize }
    }

    /// The parent of first blocks: separates tenants' salts and adapters.
    pub fn root(&self, cache_salt: &str, adapter: &str) -> BlockKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // The length keeps (salt, adapter) pairs apart that concatenate to the same bytes.
        hasher.update(&(cache_salt.len() as u64).to_le_bytes());
        hasher.update(cache_salt.as_bytes());
        hasher.update(adapter.as_bytes());
        BlockKey::of(&hasher)
    }

    /// The key of the block that holds `tokens` and follows `parent`.
    pub fn block(&self, parent: BlockKey, tokens: impl Iterator<Item = u32>) -> BlockKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        let mut bytes = [0_u8; 64];
        bytes[..16].copy_from_slice(&parent.0.to_le_bytes());
        let mut len = 16;
        for token in tokens {
            if len == bytes.len() {
                hasher.update(&bytes);
                len = 0;
            }
            bytes[len..len + 4].copy_from_slice(&token.to_le_bytes());
            len += 4;
        }
        hasher.update(&bytes[..len]);
        BlockKey::of(&hasher)
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }
}

impl BlockKey {
    fn of(hasher: &blake3::Hasher) -> Self {
        let mut half = [0_u8; 16];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        BlockKey(u128::from_le_bytes(half))
    }
}

/// Keys of a sequence's full blocks, as far as its tokens are known.
#[derive(Clone, Debug)]
pub struct KeyChain {
    root: BlockKey,
    keys: Vec<BlockKey>,
}

impl KeyChain {
    /// An empty chain with room for `num_blocks` keys.
    pub fn new(root: BlockKey, num_blocks: usize) -> Self {
        KeyChain { root, keys: Vec::with_capacity(num_blocks) }
    }

    /// A chain equal to this one with room for `num_blocks` keys.
    pub fn copy_with_room(&self, num_blocks: usize) -> Self {
        let mut keys = Vec::with_capacity(num_blocks.max(self.keys.len()));
        keys.extend_from_slice(&self.keys);
        KeyChain { root: self.root, keys }
    }

    /// Keys so far, first block first.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// The parent of block `index`: the key of the block before it, or the root.
    pub fn parent(&self, index: usize) -> BlockKey {
        match index.checked_sub(1) {
            Some(before) => self.keys[before],
            None => self.root,
        }
    }

    /// Hashes blocks until all full blocks among `num_known` tokens have a key; `token(i)` is the
    /// i-th token.
    pub fn extend(&mut self, hasher: &KeyHasher, num_known: usize, token: impl Fn(usize) -> u32) {
        let block_size = hasher.block_size();
        while (self.keys.len() + 1) * block_size <= num_known {
            // block i holds tokens [i × block_size, (i + 1) × block_size)
            let start = self.keys.len() * block_size;
            let parent = self.parent(self.keys.len());
            self.keys.push(hasher.block(parent, (start..start + block_size).map(&token)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(hasher: &KeyHasher, salt: &str, tokens: &[u32]) -> Vec<BlockKey> {
        let mut chain = KeyChain::new(hasher.root(salt, ""), 0);
        chain.extend(hasher, tokens.len(), |index| tokens[index]);
        chain.keys
    }

    #[test]
    fn equal_prefixes_share_keys_and_nothing_else_does() {
        let hasher = KeyHasher::new("f32", 16);
        let tokens: Vec<u32> = (0..50).collect();
        let keys = chain(&hasher, "a", &tokens);
        assert_eq!(keys.len(), 3);
        let mut other = tokens.clone();
        other[20] += 1;
        let changed = chain(&hasher, "a", &other);
        assert_eq!(keys[0], changed[0]);
        assert_ne!(keys[1], changed[1]);
        assert_ne!(keys[2], changed[2], "a block's key covers all blocks before it");
        assert_ne!(keys[0], chain(&hasher, "b", &tokens)[0], "salts share none");
        assert_ne!(keys[0], chain(&KeyHasher::new("bf16", 16), "a", &tokens)[0]);
        assert_ne!(hasher.root("ab", "c"), hasher.root("a", "bc"));
    }

    #[test]
    fn growing_token_by_token_gives_the_same_keys() {
        let hasher = KeyHasher::new("f32", 32);
        let tokens: Vec<u32> = (0..100).map(|i| i * 7).collect();
        let mut grown = KeyChain::new(hasher.root("", ""), 3);
        for known in 0..=tokens.len() {
            grown.extend(&hasher, known, |index| tokens[index]);
        }
        assert_eq!(grown.keys, chain(&hasher, "", &tokens));
    }
}
