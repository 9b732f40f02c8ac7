//! kv_copy.cu.

use super::dice::Dice;
use super::*;
use crate::cuda::kv_copy::{KvCopy, PIECE};
use crate::cuda::memory::CudaKv;
use crate::device::KvSpec;

/// A cache and copies within it.
#[derive(Clone, Debug)]
struct Case {
    planes: usize,
    blocks: usize,
    /// Of 16 bytes, a block of a plane.
    pieces: usize,
    copies: Vec<[u32; 2]>,
}

impl Case {
    fn new(planes: usize, blocks: usize, pieces: usize, copies: &[[u32; 2]]) -> Self {
        Case { planes, blocks, pieces, copies: copies.to_vec() }
    }

    /// Whether every byte of the cache is what it must be, of copied blocks and of all others.
    fn is_right(&self, bed: &Bed) -> Result<bool, KernelError> {
        let block_bytes = self.pieces * PIECE;
        let words = self.planes * self.blocks * block_bytes / 4;
        // Every pattern of bits, also those that are no number.
        let mut bytes: Vec<u8> = (0..words as u32)
            .flat_map(|word| (word ^ word << 13).wrapping_mul(0x9e37_79b9).to_le_bytes())
            .collect();
        let (cache, copies) = (bed.bytes(&bytes), bed.words(self.copies.as_flattened()));
        let copy = KvCopy {
            cache: cache.pointer(),
            copies: copies.pointer(),
            blocks: self.blocks as u32,
            pieces: self.pieces as u32,
        };
        // SAFETY: buffers of these shapes.
        unsafe { copy.launch(&*bed.driver, self.planes, self.copies.len()) }?;
        for plane in bytes.chunks_exact_mut(self.blocks * block_bytes) {
            for [from, to] in self.copies.iter().map(|copy| copy.map(|block| block as usize)) {
                let from = from * block_bytes;
                plane.copy_within(from..from + block_bytes, to * block_bytes);
            }
        }
        let mut got = vec![0; bytes.len()];
        cache.download(0, &mut got).unwrap();
        Ok(got == bytes)
    }
}

/// Blocks of any size on a device.
pub(in crate::cuda) fn random(_: &Bed, dice: &mut Dice, most: usize) -> Drawn {
    let blocks = 3 + dice.below(6);
    let to = dice.below(blocks);
    let others: Vec<usize> = (0..blocks).filter(|&block| block != to).collect();
    let mut copies = vec![[dice.of(&others), to]];
    // From the same one, or from a third.
    let second = others.iter().copied().find(|&block| block != copies[0][0]);
    copies.extend(second.filter(|_| dice.once_in(2)).map(|second| [copies[0][0], second]));
    let copies: Vec<[u32; 2]> = copies.iter().map(|copy| copy.map(|at| at as u32)).collect();
    let case = Case::new(2 * dice.size(8), blocks, 1 + dice.below(most.max(1)), &copies);
    (format!("{case:?}"), Box::new(move |bed: &Bed| case.is_right(bed)))
}

fn cases() -> [Case; 6] {
    [
        Case::new(2, 2, 1, &[[0, 1]]),
        Case::new(4, 5, 7, &[[0, 3], [0, 1], [4, 2]]),
        // Whole parts of a block, and one piece more or less.
        Case::new(2, 3, 1024, &[[2, 0]]),
        Case::new(2, 3, 1023, &[[1, 2], [1, 0]]),
        Case::new(6, 3, 1025, &[[1, 0]]),
        Case::new(2, 4, 2600, &[[3, 0], [2, 1]]),
    ]
}

#[test]
fn copies_are_whole_blocks_in_all_planes_and_nothing_else_changes() {
    for seed in SEEDS {
        for case in cases() {
            assert!(case.is_right(&Bed::new(seed, None)).unwrap(), "{case:?}");
        }
    }
}

#[test]
fn a_cache_of_any_format_is_whole_pieces() {
    const BLOCKS: usize = 3;
    let bed = Bed::new(1, None);
    for (format, block_size) in [
        (KvFormat::Plain(DType::F32), 16),
        (KvFormat::Plain(DType::Bf16), 64),
        (KvFormat::Fp8, 16),
        (KvFormat::Fp8, 64),
    ] {
        let (num_layers, num_kv_heads, head_dim) = (2, 3, 80);
        let spec = KvSpec { num_layers, num_kv_heads, head_dim, format, num_blocks: BLOCKS };
        let cache = CudaKv::new(&bed.driver, spec, block_size).unwrap();
        let all = spec.bytes_per_block(block_size) * BLOCKS;
        let mut bytes: Vec<u8> = (0..all).map(|at| (at * 7 + at / 256) as u8).collect();
        let start = cache.planes(0)[0];
        // SAFETY: all of the cache.
        unsafe { bed.driver.upload(start, &bytes) }.unwrap();
        let copies = bed.words(&[2, 0]);
        // SAFETY: planes and blocks of this cache.
        unsafe { KvCopy::within(&cache, copies.pointer()).launch(&*bed.driver, 4, 1) }.unwrap();
        for plane in bytes.chunks_exact_mut(all / 4) {
            let block = plane.len() / BLOCKS;
            plane.copy_within(2 * block..3 * block, 0);
        }
        let mut got = vec![0; all];
        // SAFETY: as above.
        unsafe { bed.driver.download(start, &mut got) }.unwrap();
        assert!(got == bytes, "{format:?}, {block_size} tokens");
    }
}

#[test]
fn planted_faults_show() {
    let faults = [
        Fault { from: "plane + copy.from", to: "plane + copy.to" },
        Fault { from: "plane + copy.to", to: "plane + copy.from" },
        Fault { from: "(u64)blockIdx.y * p.blocks", to: "0" },
        Fault { from: "p.copies[blockIdx.z]", to: "p.copies[0]" },
        Fault { from: "(COPY_THREADS * COPY_AHEAD)", to: "COPY_THREADS" },
        Fault { from: "if (at < p.pieces) to[at]", to: "if (at <= p.pieces) to[at]" },
        Fault { from: "if (at < p.pieces) to[at]", to: "if (at + 1 < p.pieces) to[at]" },
        Fault { from: "held[i] = from[at]", to: "held[i] = from[first]" },
        Fault { from: "to[at] = held[i]", to: "to[at] = held[0]" },
    ];
    let cases = cases();
    assert_caught(&faults, |bed| {
        cases.iter().try_fold(true, |right, case| Ok(right && case.is_right(bed)?))
    });
}
