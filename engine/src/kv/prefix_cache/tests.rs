//! The prefix cache: what is found, shared, evicted and never lost.

use super::*;
use crate::kv::key::{KeyChain, KeyHasher};

const BLOCK: u32 = 16;

fn cache(groups: &[(KvGroupKind, u32)]) -> PrefixCache {
    PrefixCache {
        groups: groups
            .iter()
            .map(|&(kind, num_blocks)| Group {
                kind,
                pool: BlockPool::new(num_blocks),
                index: PrefixIndex::new(num_blocks),
                num_evictable: 0,
            })
            .collect(),
        block_size: BLOCK,
        sharing: true,
        on_lost: None,
    }
}

fn keys(tokens: u32) -> Vec<BlockKey> {
    let hasher = KeyHasher::new("test", BLOCK);
    let mut chain = KeyChain::new(hasher.root("", ""), 0);
    chain.extend(&hasher, tokens as usize, |index| index as u32);
    chain.keys().to_vec()
}

/// Computes and publishes `len` tokens the way steps of `chunk` rows do.
fn compute(cache: &mut PrefixCache, tables: &mut [BlockTable], len: u32, chunk: u32) {
    let keys = keys(len);
    let mut computed = 0;
    let mut published = 0;
    while computed < len {
        cache.slide_out(tables, computed);
        let rows = cache.rows_that_fit(tables, computed, chunk.min(len - computed));
        assert!(rows > 0);
        computed += rows;
        cache.grow(tables, computed);
        let full = (computed / BLOCK) as usize;
        cache.publish(tables, &keys, published, full);
        published = full;
    }
}

#[test]
fn a_released_prefix_is_found_and_its_tail_is_evicted_first() {
    let mut cache = cache(&[(KvGroupKind::Full, 6)]);
    let mut tables = [BlockTable::default()];
    compute(&mut cache, &mut tables, 5 * BLOCK, 1000);
    cache.release(&mut tables);
    let keys = keys(5 * BLOCK);
    assert_eq!(cache.match_prefix(&keys), 5);
    assert_eq!(cache.counts(), BlockCounts { used: 0, total: 6, evictable: 5 });
    // Two new blocks: the one that was never used, then the last of the prefix.
    cache.grow(&mut tables, 2 * BLOCK);
    assert_eq!(cache.match_prefix(&keys), 4);
    let mut other = [BlockTable::default()];
    cache.attach(&mut other, &keys, 4);
    assert_eq!(cache.counts(), BlockCounts { used: 6, total: 6, evictable: 0 });
    assert_eq!(cache.rows_that_fit(&other, 4 * BLOCK, 9), 0);
    cache.check_integrity([&tables[..], &other[..]].into_iter()).unwrap();
}

#[test]
fn a_window_group_needs_only_the_last_window() {
    let mut cache = cache(&[(KvGroupKind::Full, 20), (KvGroupKind::Window(20), 4)]);
    let mut tables = [BlockTable::default(), BlockTable::default()];
    compute(&mut cache, &mut tables, 10 * BLOCK, 8);
    let keys = keys(10 * BLOCK);
    assert!(tables[1].live().len() <= 3, "blocks slid out: {:?}", tables[1]);
    cache.release(&mut tables);
    assert_eq!(cache.match_prefix(&keys), 10);
    // The window group kept only the last blocks: no shorter prefix is whole there.
    assert_eq!(cache.match_prefix(&keys[..5]), 0);
    cache.attach(&mut tables, &keys, 10);
    assert_eq!(tables[1].first_live(), 8, "row 160 reads from 141 on");
    cache.check_integrity([&tables[..]].into_iter()).unwrap();
}

#[test]
fn a_hole_in_the_window_shortens_the_hit() {
    let mut cache = cache(&[(KvGroupKind::Window(18), 8)]);
    let mut tables = [BlockTable::default()];
    let keys = keys(6 * BLOCK);
    cache.grow(&mut tables, 6 * BLOCK);
    cache.publish(&tables, &keys, 0, 3);
    cache.publish(&tables, &keys, 4, 6);
    // Six blocks need the fifth and sixth only; four would need the fourth, which is missing.
    assert_eq!(cache.match_prefix(&keys), 6);
    assert_eq!(cache.match_prefix(&keys[..5]), 3);
    assert_eq!(cache.match_prefix(&keys[..4]), 3);
}

#[test]
fn lost_content_is_told_once() {
    let mut cache = cache(&[(KvGroupKind::Full, 2)]);
    let (sender, lost) = std::sync::mpsc::sync_channel(16);
    cache.on_lost(Box::new(move |group, block| sender.send((group, block)).unwrap()));
    let mut tables = [BlockTable::default()];
    compute(&mut cache, &mut tables, BLOCK + 1, 1000);
    cache.release(&mut tables);
    assert_eq!(lost.try_iter().collect::<Vec<_>>(), [(0, 1)], "the half block");
    cache.grow(&mut tables, 2 * BLOCK);
    assert_eq!(lost.try_iter().collect::<Vec<_>>(), [(0, 0)], "evicted");
}

#[test]
fn shared_blocks_are_no_loss() {
    let mut cache = cache(&[(KvGroupKind::Full, 8)]);
    let (mut one, mut two) = ([BlockTable::default()], [BlockTable::default()]);
    compute(&mut cache, &mut one, 3 * BLOCK, 1000);
    assert_eq!(cache.shared_tokens(&one), 0);
    cache.attach(&mut two, &keys(3 * BLOCK), 2);
    assert_eq!(cache.shared_tokens(&one), 2 * BLOCK);
    cache.release(&mut two);
    assert_eq!(cache.shared_tokens(&one), 0);
}

#[test]
fn what_fits_counts_free_blocks_that_would_be_taken_over() {
    let mut cache = cache(&[(KvGroupKind::Full, 10), (KvGroupKind::Window(20), 10)]);
    let mut holder = [BlockTable::default(), BlockTable::default()];
    compute(&mut cache, &mut holder, 6 * BLOCK, 8);
    let keys = keys(6 * BLOCK);
    let rows = Rows { len: 6 * BLOCK + 1, chunk: BLOCK };
    let fits = |cache: &PrefixCache, spare: u32| {
        let both = cache.fits(&keys, 6, rows, [spare; 2].into_iter());
        assert!(!both || cache.may_fit(6, rows, [spare; 2].into_iter()));
        both
    };
    // Held by another: one more block of ten, of which four are free.
    assert!(fits(&cache, 3) && !fits(&cache, 4));
    cache.release(&mut holder);
    // Free: the same blocks of ten.
    assert!(fits(&cache, 3) && !fits(&cache, 4));
    assert!(cache.may_fit(6, rows, [4; 2].into_iter()), "an upper bound");
    assert!(!cache.may_fit(6, rows, [10; 2].into_iter()));
    assert!(cache.has_more_than([9; 2].into_iter()) && !cache.has_more_than([9, 10].into_iter()));
    // What fits by this count is there: nothing is taken twice.
    cache.attach(&mut holder, &keys, 6);
    assert_eq!(cache.rows_that_fit(&holder, 6 * BLOCK, 100), 4 * BLOCK);
}

#[test]
fn more_can_match_only_once_the_next_key_is_there() {
    let mut cache = cache(&[(KvGroupKind::Full, 9), (KvGroupKind::Window(20), 9)]);
    let mut tables = [BlockTable::default(), BlockTable::default()];
    let keys = keys(5 * BLOCK);
    cache.grow(&mut tables, 5 * BLOCK);
    cache.publish(&tables, &keys, 0, 2);
    assert_eq!(cache.match_prefix(&keys), 2);
    assert!(!cache.may_match_more(&keys, 2));
    assert!(!cache.may_match_more(&keys[..2], 2), "there is no next key");
    cache.publish(&tables, &keys, 2, 3);
    assert!(cache.may_match_more(&keys, 2));
    assert_eq!(cache.match_prefix(&keys), 3);
}
