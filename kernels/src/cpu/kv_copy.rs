//! Copies of blocks at the head of a step: a prefix hit that ends within a block goes on in a block of
//! its own, which first becomes what the cached one is.
//!
//! Cut over (copy, plane of a layer). Runs only in steps that copy, before any command and with a barrier
//! behind; a copied row is the same row, so no number depends on whether it was copied.

use crate::batch::{Batch, BlockCopy};
use crate::cpu::kv::KvCache;
use crate::cpu::team::Team;

/// Runs this worker's share of the copies.
///
/// # Safety
/// The caller is a worker of the executor that claimed `caches`, all of whose workers do the same; the
/// batch was admitted.
pub(crate) unsafe fn run(caches: &[(usize, KvCache)], team: &Team<'_>, batch: &Batch) {
    for (group, cache) in caches {
        let copies = &batch.groups[*group].copies;
        let num_planes = 2 * cache.spec().num_layers;
        for item in team.share(copies.len() * num_planes) {
            let BlockCopy { from, to } = copies[item / num_planes];
            // SAFETY: no block is copied to twice, or from and to; a plane of a copy is one worker's.
            unsafe { cache.copy_block(item % num_planes, from as usize, to as usize) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::GroupBatch;
    use crate::cpu::command::ScratchPlan;
    use crate::cpu::kv::Plane;
    use crate::cpu::test_team::{self, noise, teams};
    use crate::device::KvSpec;
    use crate::dtype::DType;
    use crate::kv_format::KvFormat;

    const BLOCK: usize = 16;
    const BLOCKS: usize = 5;

    fn cache(seed: usize, num_layers: usize, format: KvFormat) -> KvCache {
        let (num_kv_heads, head_dim, num_blocks) = (3, 5, BLOCKS);
        let spec = KvSpec { num_layers, num_kv_heads, head_dim, format, num_blocks };
        let cache = KvCache::new(spec, BLOCK).unwrap();
        for layer in 0..num_layers {
            for slot in 0..BLOCKS * BLOCK {
                for head in 0..num_kv_heads {
                    let at = (layer * BLOCKS * BLOCK + slot) * num_kv_heads + head;
                    let values = |first| (first..first + 5).map(|i| noise(seed, at, i));
                    let [keys, values] = [0, 5].map(|first| values(first).collect::<Vec<_>>());
                    // SAFETY: the only owner.
                    unsafe {
                        cache.write(layer, Plane::Keys, slot, head, &keys);
                        cache.write(layer, Plane::Values, slot, head, &values);
                    }
                }
            }
        }
        cache
    }

    /// The bytes of each block: of all layers, planes and heads.
    fn blocks(cache: &KvCache) -> Vec<Vec<u8>> {
        let spec = cache.spec();
        let len = spec.format.head_bytes(BLOCK, spec.head_dim);
        let heads = |block: usize| {
            (0..2 * spec.num_layers * spec.num_kv_heads).flat_map(move |at| {
                let (plane, head) = (at / spec.num_kv_heads, at % spec.num_kv_heads);
                let kind = [Plane::Keys, Plane::Values][plane % 2];
                let from = cache.head_ptr(plane / 2, kind, block, head);
                // SAFETY: in bounds, and nobody writes.
                unsafe { std::slice::from_raw_parts(from, len) }.iter().copied()
            })
        };
        (0..BLOCKS).map(|block| heads(block).collect()).collect()
    }

    #[test]
    fn a_copy_is_the_whole_block_in_all_layers_and_nothing_else_changes() {
        let formats = [DType::F32.into(), DType::Bf16.into(), KvFormat::Fp8];
        let copies = [[(0, 3), (0, 1), (4, 2)].as_slice(), &[(2, 4)]];
        for (isa, workers) in teams() {
            for format in formats {
                let caches = vec![(0, cache(1, 3, format)), (2, cache(2, 1, format))];
                let mut want: Vec<_> = caches.iter().map(|(_, cache)| blocks(cache)).collect();
                let mut batch = Batch::new(3);
                for (at, copies) in copies.iter().enumerate() {
                    for &(from, to) in *copies {
                        batch.groups[2 * at].copies.push(BlockCopy { from, to });
                        want[at][to as usize] = want[at][from as usize].clone();
                    }
                }
                assert!(batch.has_copies());
                test_team::run(isa, workers, ScratchPlan::default(), |ctx| {
                    // SAFETY: the team of this test.
                    unsafe { run(&caches, &ctx.team, &batch) };
                });
                for ((_, cache), want) in caches.iter().zip(want) {
                    assert!(blocks(cache) == want, "{format:?}, {workers} workers");
                }
            }
        }
    }

    #[test]
    fn a_batch_forgets_its_copies() {
        let mut batch = Batch { groups: vec![GroupBatch::default()], ..Batch::default() };
        batch.groups[0].copies.push(BlockCopy { from: 1, to: 2 });
        batch.clear();
        assert!(!batch.has_copies());
    }
}
