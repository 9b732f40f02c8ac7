//! Page-locked memory of the host, which the device copies by itself; and the two pieces of it through
//! which all uploads go.
//!
//! While one piece is on its way, the other is filled: weights are packed, on all cores, at the same time
//! as they travel, and nobody waits for a copy but whoever needs its piece once more.

use std::sync::{Mutex, PoisonError};

use super::api::{Event, Handle, Stream, check, sys};
use crate::cuda::driver::{DevicePointer, Fill, HostPointer, UPLOAD_MAX};
use crate::error::KernelError;

/// Pieces of [`UPLOAD_MAX`] bytes: one that is filled, one that travels.
const PIECES: usize = 2;

/// Page-locked memory that uploads take, once there was one.
pub(super) const UPLOAD_BYTES: usize = PIECES * UPLOAD_MAX;

/// Zeroed memory of `bytes` bytes, one at least; the context is current.
pub(super) fn allocate(bytes: usize) -> Result<HostPointer, KernelError> {
    let mut pointer = std::ptr::null_mut();
    // Never write-combined: the host reads results from it.
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE;
    // SAFETY: writes one address. Whole pages: aligned to more than 256 bytes.
    let code = unsafe { sys::cuMemHostAlloc(&raw mut pointer, bytes, flags) };
    if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        let reason = format!("the host has no {bytes} bytes of memory that can be page-locked");
        return Err(KernelError::Unsupported(reason));
    }
    check("cuMemHostAlloc", code)?;
    let pointer: *mut u8 = pointer.cast();
    // SAFETY: allocated just now, and nobody else's.
    unsafe { pointer.write_bytes(0, bytes) };
    Ok(HostPointer(pointer))
}

/// Gives memory of [`allocate`] back.
///
/// # Safety
/// Nobody uses it any more, nor a copy.
pub(super) unsafe fn release(pointer: HostPointer) {
    // SAFETY: the caller's promise.
    let _ = unsafe { sys::cuMemFreeHost(pointer.0.cast()) };
}

/// The pieces, allocated when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<Turns>);

#[derive(Debug, Default)]
struct Turns {
    pieces: Vec<Piece>,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    memory: HostPointer,
    /// Behind its last copy.
    copied: Event,
}

impl Uploads {
    /// Asks `stream` for a copy of what `fill` writes, `bytes` bytes, to the device. The context is
    /// current.
    ///
    /// # Safety
    /// The memory from `to` on is allocated and long enough.
    pub(super) unsafe fn send(
        &self,
        stream: Stream,
        (to, bytes): (DevicePointer, usize),
        fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        assert!(bytes <= UPLOAD_MAX, "an upload of {bytes} bytes");
        if bytes == 0 {
            return fill(&mut []);
        }
        // Held until the copy was asked for: a piece has one user.
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Piece { memory, copied } = turns.take()?;
        // At once where it was never recorded.
        // SAFETY: an event of ours.
        let code = unsafe { sys::cuEventSynchronize(copied.0) };
        check("cuEventSynchronize", code)?;
        // SAFETY: initialised memory of UPLOAD_MAX bytes, which nobody else borrows while the turns are
        // held, and whose last copy is over.
        fill(unsafe { std::slice::from_raw_parts_mut(memory.0, bytes) })?;
        // SAFETY: the caller's promise; the piece stays as it is until the event was waited for.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, memory.0.cast(), bytes, stream.0) };
        check("cuMemcpyHtoDAsync", code)?;
        // SAFETY: an event and a stream of ours.
        let code = unsafe { sys::cuEventRecord(copied.0, stream.0) };
        Ok(check("cuEventRecord", code)?)
    }

    /// Gives everything back, when no copy is on its way; the context is current.
    pub(super) fn end(&self) {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Piece { memory, copied } in turns.pieces.drain(..) {
            // SAFETY: ours, taken from the list, and no copy uses it.
            unsafe { release(memory) };
            // SAFETY: an event of ours.
            let _ = unsafe { sys::cuEventDestroy_v2(copied.0) };
        }
    }
}

impl Turns {
    /// The piece whose turn it is.
    fn take(&mut self) -> Result<Piece, KernelError> {
        if self.pieces.len() < PIECES {
            let mut copied = std::ptr::null_mut();
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: the context is current; writes one handle.
            let code = unsafe { sys::cuEventCreate(&raw mut copied, flags) };
            check("cuEventCreate", code)?;
            let piece = Piece { memory: allocate(UPLOAD_MAX)?, copied: Handle(copied) };
            self.pieces.push(piece);
            return Ok(piece);
        }
        let piece = self.pieces[self.next];
        self.next = (self.next + 1) % PIECES;
        Ok(piece)
    }
}
