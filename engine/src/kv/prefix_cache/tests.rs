//! The prefix cache: what is found, shared, evicted and never lost.

use pagoda_kernels::batch::{BlockCopy, GroupBatch};

use super::*;
use crate::kv::key::KeyHasher;

const BLOCK: u32 = 16;

fn cache(groups: &[(KvGroupKind, u32)]) -> PrefixCache {
    PrefixCache {
        groups: groups
            .iter()
            .map(|&(kind, num_blocks)| Group::new(kind, num_blocks, BLOCK))
            .collect(),
        block_size: BLOCK,
        sharing: true,
        sources: Vec::new(),
        forgets_sources: false,
        on_lost: None,
    }
}

/// Tokens 0, 1, 2, … of a tenant.
fn chain_of(salt: &str, tokens: u32) -> KeyChain {
    let hasher = KeyHasher::new("test", BLOCK);
    let mut chain = KeyChain::new(hasher.root(salt, ""), 0);
    chain.extend(&hasher, tokens as usize, |index| index as u32);
    chain
}

fn keys(tokens: u32) -> Vec<BlockKey> {
    chain_of("", tokens).keys().to_vec()
}

/// Publishes tokens `rows` of those that [`keys`] hashes.
fn publish(cache: &mut PrefixCache, tables: &[BlockTable], rows: Range<u32>) {
    let chain = chain_of("", rows.end);
    cache.publish(tables, &chain, rows, |index| index as u32);
}

/// Computes and publishes `len` tokens the way steps of `chunk` rows do.
fn compute(cache: &mut PrefixCache, tables: &mut [BlockTable], len: u32, chunk: u32) {
    let mut computed = 0;
    let mut published = 0;
    while computed < len {
        cache.slide_out(tables, computed);
        let rows = cache.rows_that_fit(tables, computed, chunk.min(len - computed));
        assert!(rows > 0);
        computed += rows;
        cache.grow(tables, computed);
        let full = computed - computed % BLOCK;
        publish(cache, tables, published..full);
        published = full;
    }
}

/// How a hit on `len` full blocks' tokens goes on for whoever wants `wanted`.
fn tail(cache: &PrefixCache, chain: &KeyChain, len: u32, wanted: &[u32]) -> Tail {
    let mut tail = Tail::default();
    cache.match_tail(chain.parent((len / BLOCK) as usize), wanted, &mut tail);
    tail
}

fn counted(from: u32, len: u32) -> Vec<u32> {
    (from..from + len).collect()
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
    publish(&mut cache, &tables, 0..3 * BLOCK);
    publish(&mut cache, &tables, 4 * BLOCK..6 * BLOCK);
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
        let both = cache.fits(&keys, 6, &Tail::default(), rows, [spare; 2].into_iter());
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
    publish(&mut cache, &tables, 0..2 * BLOCK);
    assert_eq!(cache.match_prefix(&keys), 2);
    assert!(!cache.may_match_more(&keys, 2));
    assert!(!cache.may_match_more(&keys[..2], 2), "there is no next key");
    publish(&mut cache, &tables, 2 * BLOCK..3 * BLOCK);
    assert!(cache.may_match_more(&keys, 2));
    assert_eq!(cache.match_prefix(&keys), 3);
}

#[test]
fn a_hit_goes_on_within_a_block_of_which_a_copy_is_made() {
    let mut cache = cache(&[(KvGroupKind::Full, 6), (KvGroupKind::Window(20), 6)]);
    let mut tables = [BlockTable::default(), BlockTable::default()];
    compute(&mut cache, &mut tables, 2 * BLOCK + 12, 1000);
    let chain = chain_of("", 2 * BLOCK);
    assert_eq!(tail(&cache, &chain, 2 * BLOCK, &counted(32, 15)).tokens, 0, "not yet offered");
    publish(&mut cache, &tables, 2 * BLOCK..2 * BLOCK + 12);
    let found = tail(&cache, &chain, 2 * BLOCK, &counted(32, 15));
    assert_eq!((found.tokens, &found.sources[..]), (12, &[2, 2][..]));
    assert_eq!(tail(&cache, &chain, 2 * BLOCK, &counted(32, 9)).tokens, 9);
    assert_eq!(tail(&cache, &chain, 2 * BLOCK, &counted(32, 7)), Tail::default(), "too few");
    // A full block serves as well, but never whole: its key would have been found.
    assert_eq!(tail(&cache, &chain, BLOCK, &counted(16, 16)).tokens, 15);
    let salted = chain_of("another", 2 * BLOCK);
    assert_eq!(tail(&cache, &salted, 2 * BLOCK, &counted(32, 15)), Tail::default());
    assert_eq!(tail(&cache, &salted, 0, &counted(0, 15)), Tail::default());

    let mut other = [BlockTable::default(), BlockTable::default()];
    let mut batch = vec![GroupBatch::default(); 2];
    cache.attach(&mut other, chain.keys(), 2);
    assert!(cache.copy_tail(&mut other, &found, &mut batch));
    for group in &batch {
        assert_eq!(group.copies, [BlockCopy { from: 2, to: 3 }]);
    }
    assert_eq!(other.each_ref().map(|table| table.entries().last().copied()), [Some(3); 2]);
    cache.check_integrity([&tables[..], &other[..]].into_iter()).unwrap();
    cache.let_sources_go();
    cache.check_integrity([&tables[..], &other[..]].into_iter()).unwrap();
    // It is the other's own: what it computes there is found beside what it began with.
    cache.release(&mut tables);
    publish(&mut cache, &other, 2 * BLOCK..2 * BLOCK + 14);
    assert_eq!(tail(&cache, &chain, 2 * BLOCK, &counted(32, 15)).tokens, 14);
}

#[test]
fn nothing_is_copied_that_the_same_step_gives_away() {
    let mut cache = cache(&[(KvGroupKind::Full, 3)]);
    let mut tables = [BlockTable::default()];
    compute(&mut cache, &mut tables, BLOCK + 12, 1000);
    publish(&mut cache, &tables, BLOCK..BLOCK + 12);
    cache.release(&mut tables);
    let chain = chain_of("", BLOCK);
    let found = tail(&cache, &chain, BLOCK, &counted(16, 12));
    assert_eq!(found.sources, [1]);
    let rows = Rows { len: BLOCK + 13, chunk: BLOCK };
    let fits = |cache: &PrefixCache, tail: &Tail, spare| {
        cache.fits(chain.keys(), 1, tail, rows, [spare].into_iter())
    };
    // The shared block, the copied one, and the copy.
    assert!(fits(&cache, &found, 0) && !fits(&cache, &found, 1));
    assert!(fits(&cache, &Tail::default(), 1), "one that computes all needs one fewer");
    let mut batch = vec![GroupBatch::default()];
    let mut sequences = [[BlockTable::default()], [BlockTable::default()]];
    let [one, two] = &mut sequences;
    cache.attach(one, chain.keys(), 1);
    assert!(cache.copy_tail(one, &found, &mut batch));
    assert_eq!(batch[0].copies, [BlockCopy { from: 1, to: 2 }]);
    // Another one finds the source, and no block for its copy.
    cache.attach(two, chain.keys(), 1);
    assert!(fits(&cache, &found, 0) == fits(&cache, &Tail::default(), 0));
    assert!(!cache.copy_tail(two, &found, &mut batch));
    assert_eq!((batch[0].copies.len(), two[0].len()), (1, 1));
    cache.check_integrity(sequences.iter().map(|tables| &tables[..])).unwrap();
    cache.let_sources_go();
    cache.check_integrity(sequences.iter().map(|tables| &tables[..])).unwrap();
    assert_eq!(cache.counts().evictable, 1);
    // Once the step is filled the source may go, and is found no more.
    let [_, two] = &mut sequences;
    cache.grow(two, 2 * BLOCK);
    assert_eq!(tail(&cache, &chain, BLOCK, &counted(16, 12)), Tail::default());
    cache.check_integrity(sequences.iter().map(|tables| &tables[..])).unwrap();
}

#[test]
fn a_tail_that_becomes_full_is_a_block_like_any_other() {
    let mut cache = cache(&[(KvGroupKind::Full, 6)]);
    let (mut one, mut two) = ([BlockTable::default()], [BlockTable::default()]);
    for tables in [&mut one, &mut two] {
        cache.grow(tables, BLOCK);
        publish(&mut cache, tables, 0..10);
    }
    assert!(!cache.groups[0].is_findable(1), "another block begins so");
    publish(&mut cache, &two, 10..12);
    assert!(cache.groups[0].is_findable(1), "it has more");
    publish(&mut cache, &one, 10..BLOCK);
    publish(&mut cache, &two, 12..BLOCK);
    assert_eq!(cache.match_prefix(&keys(BLOCK)), 1);
    assert!(!cache.groups[0].is_findable(1), "another block has the key");
    cache.release(&mut one);
    cache.release(&mut two);
    assert_eq!(cache.counts().evictable, 1);
    cache.check_integrity(std::iter::empty()).unwrap();
}

#[test]
fn groups_go_on_together_or_not_at_all() {
    let mut cache = cache(&[(KvGroupKind::Full, 6), (KvGroupKind::Window(20), 6)]);
    let mut tables = [BlockTable::default(), BlockTable::default()];
    cache.grow(&mut tables, 2 * BLOCK);
    publish(&mut cache, &tables, 0..BLOCK + 13);
    let chain = chain_of("", 2 * BLOCK);
    assert_eq!(tail(&cache, &chain, BLOCK, &counted(16, 15)).tokens, 13);
    // The window group's block gets lost.
    assert!(cache.groups[1].forget(1));
    assert_eq!(tail(&cache, &chain, BLOCK, &counted(16, 15)), Tail::default());
    // Another one begins alike there, for a while.
    cache.groups[1].beginnings.put(4, chain.parent(1), 9, |index| 16 + index as u32);
    let found = tail(&cache, &chain, BLOCK, &counted(16, 15));
    assert_eq!((found.tokens, &found.sources[..]), (9, &[1, 4][..]));
}
