//! Device memory full of random numbers: weights and caches of whatever shape lie somewhere in it.
//!
//! A window is another one for each call, so that what a kernel reads is not in the card's cache.

use std::sync::Arc;

use half::bf16;

use super::Size;
use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::error::KernelError;

/// Numbers in (−1, 1), in bf16.
pub(super) struct Pool {
    buffer: DeviceBuffer,
    bytes: usize,
}

/// Random numbers of one copy; copies follow each other.
const CHUNK_BYTES: usize = 32 << 20;
const ALIGNMENT: usize = 256;

impl Pool {
    pub(super) fn new(driver: &Arc<dyn Driver>, size: Size) -> Result<Self, KernelError> {
        let bytes = match size {
            Size::Full => 6 << 30,
            Size::Tiny => 1 << 20,
        };
        Pool::of(driver, bytes, &random_numbers(CHUNK_BYTES.min(bytes) / 2))
    }

    /// `bytes` bytes of `chunk` after `chunk`, the last one cut off where they end.
    pub(super) fn of(
        driver: &Arc<dyn Driver>,
        bytes: usize,
        chunk: &[u8],
    ) -> Result<Self, KernelError> {
        let buffer = DeviceBuffer::new(driver, bytes, "random numbers")?;
        for at in (0..bytes).step_by(chunk.len()) {
            buffer.upload(at, &chunk[..chunk.len().min(bytes - at)])?;
        }
        Ok(Pool { buffer, bytes })
    }

    /// Whether windows of `bytes` fit, two at least.
    pub(super) fn has(&self, bytes: usize) -> bool {
        bytes.next_multiple_of(ALIGNMENT) * 2 <= self.bytes
    }

    /// The window of `bytes` for a call: another one than the last, as far from it as there is room.
    pub(super) fn window(&self, bytes: usize, call: usize) -> DevicePointer {
        let windows = self.bytes / bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        self.buffer.pointer().offset(call % windows.max(1) * bytes.next_multiple_of(ALIGNMENT))
    }

    /// Its first byte.
    pub(super) fn pointer(&self) -> DevicePointer {
        self.buffer.pointer()
    }

    /// All of it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn random_numbers(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bf16::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).flat_map(|_| next().to_le_bytes()).collect()
}
