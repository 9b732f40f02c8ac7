//! Copies of blocks at the head of a step: launches of kv_copy.cu, one for each cache of a KV group.
//!
//! Never part of a graph: few steps copy, and those that do have a row or more of a new sequence. In the
//! order of the stream, so behind the rows of the step before, and ahead of all that this step writes.

use crate::batch::Batch;
use crate::cuda::driver::{DevicePointer, Driver, Grid, Kernel, launch};
use crate::cuda::inputs::Inputs;
use crate::cuda::memory::CudaKv;
use crate::cuda::source::KV_COPY;
use crate::cuda::staging::Staging;
use crate::error::KernelError;
use crate::shapes::CacheShape;

/// Mirrors `KvCopy` of kv_copy.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct KvCopy {
    pub(crate) cache: DevicePointer,
    pub(crate) copies: DevicePointer,
    pub(crate) blocks: u32,
    pub(crate) pieces: u32,
}

const THREADS: u32 = 256;
/// Pieces that a block of threads copies.
const PIECES_EACH: u32 = 4 * THREADS;
/// Bytes of a piece. Every block of a plane is whole pieces: it has at least 16 tokens.
pub(crate) const PIECE: usize = 16;

static KERNEL: Kernel<KvCopy> = Kernel::new(&KV_COPY, "kv_copy", THREADS);

impl KvCopy {
    /// Copies within `cache`, between the blocks that are at `copies` on the device.
    pub(crate) fn within(cache: &CudaKv, copies: DevicePointer) -> Self {
        let (spec, [first, _]) = (cache.spec(), cache.planes(0));
        let plane_bytes = spec.bytes_per_block(cache.block_size()) / num_planes(cache);
        debug_assert!(plane_bytes.is_multiple_of(PIECE));
        let (blocks, pieces) = (spec.num_blocks as u32, (plane_bytes / PIECE) as u32);
        KvCopy { cache: first, copies, blocks, pieces }
    }

    /// Makes `copies` copies in each of `planes` planes.
    ///
    /// # Safety
    /// Every pointer has what kv_copy.cu says for so many, and numbers of blocks are in range.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        planes: usize,
        copies: usize,
    ) -> Result<(), KernelError> {
        let blocks = [self.pieces.div_ceil(PIECES_EACH), planes as u32, copies as u32];
        // SAFETY: the caller's promise.
        unsafe { launch(driver, &KERNEL, Grid { blocks, shared_bytes: 0 }, self) }
    }
}

/// Of keys and of values, over all layers of the group.
fn num_planes(cache: &CudaKv) -> usize {
    2 * cache.spec().num_layers
}

/// The caches whose blocks a step may copy, each with its KV group.
pub(crate) struct BlockCopies(pub(crate) Vec<(usize, CudaKv)>);

impl BlockCopies {
    /// Makes the copies of `batch`, if it has any.
    ///
    /// # Safety
    /// The batch was admitted, and its arrays are in `staging`, on their way.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        inputs: &Inputs,
        staging: &Staging,
        batch: &Batch,
    ) -> Result<(), KernelError> {
        for (group, cache) in &self.0 {
            let copies = batch.groups[*group].copies.len();
            if copies > 0 {
                let copy = KvCopy::within(cache, inputs.group(staging, *group).copies);
                // SAFETY: the caller's promise; the cache has these planes.
                unsafe { copy.launch(driver, num_planes(cache), copies) }?;
            }
        }
        Ok(())
    }
}
