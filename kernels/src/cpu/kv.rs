//! The KV cache of one group of layers: raw storage and its layout.
//!
//! A plane per layer for K and one for V; a plane is cut into blocks, a block into KV heads. K of
//! a (block, head) is `[D][block_size]`, so that vector lanes lie over tokens when scores are
//! computed; V is `[block_size][D]`, so that they lie over D when values are added. In fp8 the scales
//! of a (block, head) lie behind its codes ([`crate::kv_format`]). Written by `qk_rope_store`, read by
//! `attention`, copied by the block at the head of a step; nobody else touches it.

use std::sync::Arc;

use half::{bf16, f16};

use crate::cpu::buffer::{AlignedBuffer, Claim};
use crate::device::KvSpec;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::kv_format::{KvFormat, code_of, scale_of};

/// Cheap handle of a group's cache.
#[derive(Clone, Debug)]
pub struct KvCache(Arc<KvMemory>);

#[derive(Debug)]
struct KvMemory {
    spec: KvSpec,
    block_size: usize,
    data: AlignedBuffer,
    claim: Arc<Claim>,
}

/// Which of a layer's two planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plane {
    /// K, `[D][block_size]` a (block, head).
    Keys,
    /// V, `[block_size][D]` a (block, head).
    Values,
}

impl KvCache {
    /// A zeroed cache.
    pub(crate) fn new(spec: KvSpec, block_size: usize) -> Result<Self, KernelError> {
        let head_bytes = spec.format.head_bytes(block_size, spec.head_dim);
        let bytes = [2, spec.num_layers, spec.num_kv_heads, spec.num_blocks]
            .into_iter()
            .try_fold(head_bytes, usize::checked_mul);
        let Some(bytes) = bytes else {
            let what = format!("a KV cache of {} blocks", spec.num_blocks);
            return Err(KernelError::OutOfMemory { what, bytes: usize::MAX });
        };
        let data = AlignedBuffer::zeroed(bytes, "the KV cache")?;
        Ok(KvCache(Arc::new(KvMemory { spec, block_size, data, claim: Arc::default() })))
    }

    /// The shape it was made with.
    pub fn spec(&self) -> KvSpec {
        self.0.spec
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.0.block_size
    }

    /// Whether two handles name one cache.
    pub(crate) fn is_same(&self, other: &KvCache) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The claim of the executor that may use it.
    pub(crate) fn claim(&self) -> &Arc<Claim> {
        &self.0.claim
    }

    /// First element of a (layer, plane, block, head): `head_dim · block_size` elements of the
    /// cache's format, and their scales if it has any, are in bounds from there. The pointer may be read while no worker writes that
    /// (block, head), and written by one worker at a time.
    #[inline(always)]
    pub(crate) fn head_ptr(
        &self,
        layer: usize,
        plane: Plane,
        block: usize,
        head: usize,
    ) -> *mut u8 {
        let KvMemory { spec, block_size, data, .. } = &*self.0;
        assert!(
            layer < spec.num_layers && block < spec.num_blocks && head < spec.num_kv_heads,
            "KV address out of range"
        );
        let plane_idx = 2 * layer + usize::from(plane == Plane::Values);
        let head_idx = (plane_idx * spec.num_blocks + block) * spec.num_kv_heads + head;
        let offset = head_idx * spec.format.head_bytes(*block_size, spec.head_dim);
        // SAFETY: in bounds by the assertion and the size computed in `new`.
        unsafe { data.as_ptr().add(offset) }
    }

    /// First scale of a (layer, plane, block, head), whose tokens have one each; `None` in a format
    /// without.
    #[inline(always)]
    pub(crate) fn scales_ptr(
        &self,
        layer: usize,
        plane: Plane,
        block: usize,
        head: usize,
    ) -> Option<*mut u8> {
        let KvMemory { spec, block_size, .. } = &*self.0;
        let codes = self.head_ptr(layer, plane, block, head);
        // Within the head's bytes: its codes are one byte each.
        (spec.format == KvFormat::Fp8).then(|| codes.wrapping_add(spec.head_dim * block_size))
    }

    /// Gives block `to` of a plane (two a layer) what block `from` holds: all heads, with their scales.
    ///
    /// # Safety
    /// As [`KvCache::write`], of both blocks of the plane: nobody writes `from`, and nobody else has
    /// anything to do with `to`.
    pub(crate) unsafe fn copy_block(&self, plane_idx: usize, from: usize, to: usize) {
        let KvMemory { spec, .. } = &*self.0;
        let plane = if plane_idx.is_multiple_of(2) { Plane::Keys } else { Plane::Values };
        let [from, to] = [from, to].map(|block| self.head_ptr(plane_idx / 2, plane, block, 0));
        assert_ne!(from, to, "a block is copied to another one");
        let head_bytes = spec.format.head_bytes(self.0.block_size, spec.head_dim);
        // SAFETY: a block's heads lie one after another; two blocks do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to, spec.num_kv_heads * head_bytes) };
    }

    /// Rounds one token's K (or V) of a head to the cache's format and writes it to `slot`.
    ///
    /// # Safety
    /// The caller is a worker of the executor that claimed this cache, and within the running
    /// command no other worker reads this block's head or writes this slot of it.
    pub(crate) unsafe fn write(
        &self,
        layer: usize,
        plane: Plane,
        slot: usize,
        head: usize,
        values: &[f32],
    ) {
        let (block_size, head_dim) = (self.0.block_size, self.0.spec.head_dim);
        let offset = slot % block_size;
        let base = self.head_ptr(layer, plane, slot / block_size, head);
        let (first, step) = match plane {
            Plane::Keys => (offset, block_size),
            Plane::Values => (offset * head_dim, 1),
        };
        assert_eq!(values.len(), head_dim);
        let scale = match self.scales_ptr(layer, plane, slot / block_size, head) {
            None => 0,
            Some(scales) => {
                let scale = scale_of(values);
                // SAFETY: offset < block_size; the caller answers for other workers.
                unsafe { *scales.add(offset) = scale };
                scale
            }
        };
        for (i, &value) in values.iter().enumerate() {
            let at = first + i * step;
            // SAFETY: at < head_dim · block_size; the caller answers for other workers.
            unsafe {
                match self.0.spec.format {
                    KvFormat::Plain(DType::F32) => *base.cast::<f32>().add(at) = value,
                    KvFormat::Plain(DType::Bf16) => {
                        *base.cast::<u16>().add(at) = bf16::from_f32(value).to_bits();
                    }
                    KvFormat::Plain(DType::F16) => {
                        *base.cast::<u16>().add(at) = f16::from_f32(value).to_bits();
                    }
                    KvFormat::Fp8 => *base.add(at) = code_of(value, scale),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_distinct_and_in_bounds() {
        let spec = KvSpec {
            num_layers: 2,
            num_kv_heads: 3,
            head_dim: 5,
            format: DType::Bf16.into(),
            num_blocks: 4,
        };
        let cache = KvCache::new(spec, 16).unwrap();
        let mut seen = Vec::new();
        for layer in 0..2 {
            for plane in [Plane::Keys, Plane::Values] {
                for block in 0..4 {
                    for head in 0..3 {
                        let start = cache.head_ptr(layer, plane, block, head) as usize;
                        seen.push(start - cache.0.data.as_ptr() as usize);
                    }
                }
            }
        }
        seen.sort_unstable();
        let step = 5 * 16 * 2;
        assert!(seen.iter().enumerate().all(|(i, &offset)| offset == i * step));
        assert_eq!(seen.len() * step, spec.bytes_per_block(16) * spec.num_blocks);
    }

    #[test]
    fn keys_lie_across_tokens_and_values_along_them() {
        let spec = KvSpec {
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 3,
            format: DType::F32.into(),
            num_blocks: 2,
        };
        let cache = KvCache::new(spec, 16).unwrap();
        // SAFETY: the only owner.
        unsafe {
            cache.write(0, Plane::Keys, 21, 0, &[1.0, 2.0, 3.0]);
            cache.write(0, Plane::Values, 21, 0, &[4.0, 5.0, 6.0]);
            let keys = cache.head_ptr(0, Plane::Keys, 1, 0).cast::<f32>();
            let values = cache.head_ptr(0, Plane::Values, 1, 0).cast::<f32>();
            for i in 0..3 {
                assert_eq!(*keys.add(i * 16 + 5), (i + 1) as f32);
                assert_eq!(*values.add(5 * 3 + i), (i + 4) as f32);
            }
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        let spec = KvSpec {
            num_layers: usize::MAX / 2,
            num_kv_heads: 3,
            head_dim: 5,
            format: DType::Bf16.into(),
            num_blocks: 4,
        };
        assert!(KvCache::new(spec, 32).is_err());
    }
}
