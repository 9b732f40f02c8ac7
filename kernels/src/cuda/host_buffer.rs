//! Page-locked host memory: the host's end of the copies of steps.
//!
//! A copy works on it behind the host's back until a mark behind the copy was waited for, so whoever
//! reads or writes it says why none does.

use std::sync::Arc;

use crate::cuda::driver::{Driver, HostPointer};
use crate::cuda::plain::{Plain, bytes_of};
use crate::error::KernelError;

/// Page-locked memory that is given back when dropped.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    driver: Arc<dyn Driver>,
    pointer: HostPointer,
    bytes: usize,
}

/// Of an empty buffer: as aligned as any.
const NOWHERE: HostPointer = HostPointer(std::ptr::without_provenance_mut(256));

impl HostBuffer {
    /// Zeroed memory. None is asked for where there is nothing to hold.
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self, KernelError> {
        let pointer = if bytes == 0 { NOWHERE } else { driver.allocate_host(bytes)? };
        Ok(HostBuffer { driver: Arc::clone(driver), pointer, bytes })
    }

    /// The byte at `offset`. Panics beyond the end: an offset that the caller planned.
    pub(crate) fn pointer(&self, offset: usize) -> HostPointer {
        assert!(offset <= self.bytes, "a pointer beyond its buffer");
        // SAFETY: within the buffer or at its end.
        HostPointer(unsafe { self.pointer.0.add(offset) })
    }

    /// Copies `values` to `offset`. Panics if they do not fit: a length that the caller planned.
    ///
    /// # Safety
    /// No copy that was asked for has still to read or write these bytes.
    pub(crate) unsafe fn write<T: Plain>(&mut self, offset: usize, values: &[T]) {
        let bytes = bytes_of(values);
        assert!(offset + bytes.len() <= self.bytes, "a write beyond its buffer");
        let to = self.pointer(offset).0;
        // SAFETY: within the buffer, of which this is the only borrow on the host; the rest is the
        // caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// The first `len` values. Panics if there are fewer: a length that the caller planned.
    ///
    /// # Safety
    /// No copy that was asked for has still to write these bytes, nor will one before the values are
    /// given up.
    pub(crate) unsafe fn values<T: Plain>(&self, len: usize) -> &[T] {
        assert!(len * size_of::<T>() <= self.bytes, "more values than their buffer has");
        // SAFETY: initialised memory, aligned to more than any plain type asks for; the rest is the
        // caller's promise.
        unsafe { std::slice::from_raw_parts(self.pointer.0.cast(), len) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the only owner; copies that use it run before, in the order of the stream.
            unsafe { self.driver.release_host(self.pointer) };
        }
    }
}
