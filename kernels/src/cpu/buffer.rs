//! Memory of the CPU device: aligned zeroed buffers, and activations that a team shares.
//!
//! Everything is allocated while a model loads; a step only reads and writes. Weights never change
//! after packing. Activations are written by workers through [`Activation::row_mut`]: see there for
//! the rule that makes it sound.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::KernelError;

/// Lanes of the widest vector: rows and panels are padded to it, so that no kernel has a tail.
pub(crate) const LANES_MAX: usize = 16;

/// Cache line and widest vector, in bytes.
const ALIGN: usize = 64;

/// From this size on, a buffer asks for huge pages: fewer TLB misses when weights are streamed.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes, aligned to a cache line, freed on drop.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
    source: Source,
}

/// Who gave the memory, and takes it back.
#[derive(Debug)]
enum Source {
    /// The allocator.
    Heap(Layout),
    /// The system: pages come when they are first written, so that a large KV cache costs nothing
    /// at start.
    #[cfg(unix)]
    Mapping { start: *mut libc::c_void, bytes: usize },
}

// SAFETY: the buffer owns plain bytes; whoever hands out references answers for aliasing.
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared access reads only, unless through `as_ptr`, whose users state their own rule.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `bytes` zero bytes for `what`.
    pub(crate) fn zeroed(bytes: usize, what: &str) -> Result<Self, KernelError> {
        let bytes = bytes.max(ALIGN);
        #[cfg(unix)]
        let buffer = if bytes >= HUGE_PAGE { Self::mapped(bytes) } else { Self::heap(bytes) };
        #[cfg(not(unix))]
        let buffer = Self::heap(bytes);
        buffer.ok_or_else(|| KernelError::OutOfMemory { what: what.to_owned(), bytes })
    }

    fn heap(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, ALIGN).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(AlignedBuffer { start, bytes, source: Source::Heap(layout) })
    }

    /// Starts at a border of huge pages, which are asked for.
    #[cfg(unix)]
    fn mapped(bytes: usize) -> Option<Self> {
        let mapped_bytes = bytes.checked_add(HUGE_PAGE)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the system's choice.
        let mapping =
            unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return None;
        }
        let offset = mapping.cast::<u8>().align_offset(HUGE_PAGE);
        let start = mapping.cast::<u8>().wrapping_add(offset);
        #[cfg(target_os = "linux")]
        // SAFETY: within the mapping; advice cannot harm it, and a refusal only costs speed.
        unsafe {
            libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE);
        }
        let source = Source::Mapping { start: mapping, bytes: mapped_bytes };
        Some(AlignedBuffer { start: NonNull::new(start)?, bytes, source })
    }

    /// First byte. Writing through it needs a reason why nobody else looks.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes asked for, at least a cache line.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The buffer as plain values.
    pub(crate) fn as_slice<T: Plain>(&self) -> &[T] {
        // SAFETY: aligned, initialised, every bit pattern is a T, and writers have exclusive access
        // (`as_mut_slice`) or state their own rule (`as_ptr`).
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / size_of::<T>()) }
    }

    /// The buffer as plain values, to fill.
    pub(crate) fn as_mut_slice<T: Plain>(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast(), self.len() / size_of::<T>()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated or mapped just so, and nobody else frees it.
        unsafe {
            match self.source {
                Source::Heap(layout) => dealloc(self.start.as_ptr(), layout),
                #[cfg(unix)]
                Source::Mapping { start, bytes } => _ = libc::munmap(start, bytes),
            }
        }
    }
}

/// Numbers for which every bit pattern is valid.
///
/// # Safety
/// No padding, no invalid values, alignment at most 64.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: a float.
unsafe impl Plain for f32 {}

/// Marks mutable memory that one executor at a time may use.
///
/// Two executors that share a buffer would race. So an executor claims every mutable buffer of its
/// program when it starts and gives it back when its team has ended.
#[derive(Debug, Default)]
pub(crate) struct Claim(AtomicBool);

impl Claim {
    /// `false` when another executor has it.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Gives it back.
    pub(crate) fn release(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// f32 activations, `[rows, cols]`; each row is padded with zeros to whole vectors.
#[derive(Clone, Debug)]
pub struct Activation(Arc<ActivationMemory>);

#[derive(Debug)]
struct ActivationMemory {
    rows: usize,
    cols: usize,
    stride: usize,
    data: AlignedBuffer,
    claim: Arc<Claim>,
}

impl Activation {
    /// Zeros.
    pub(crate) fn new(rows: usize, cols: usize) -> Result<Self, KernelError> {
        let stride = cols.checked_next_multiple_of(LANES_MAX);
        let bytes = stride.and_then(|stride| stride.checked_mul(rows)?.checked_mul(4));
        let (Some(stride), Some(bytes)) = (stride, bytes) else {
            let what = format!("an activation [{rows}, {cols}]");
            return Err(KernelError::OutOfMemory { what, bytes: usize::MAX });
        };
        let data = AlignedBuffer::zeroed(bytes, "activations")?;
        let claim = Arc::default();
        Ok(Activation(Arc::new(ActivationMemory { rows, cols, stride, data, claim })))
    }

    /// Rows it can hold.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// Elements from a row to the next: columns padded to whole vectors.
    pub(crate) fn stride(&self) -> usize {
        self.0.stride
    }

    /// Whether two handles name one memory.
    pub(crate) fn is(&self, other: &Activation) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The claim of the executor that may use it.
    pub(crate) fn claim(&self) -> &Arc<Claim> {
        &self.0.claim
    }

    /// First element. Valid for `rows * stride` elements.
    pub(crate) fn as_ptr(&self) -> *mut f32 {
        self.0.data.as_ptr().cast()
    }

    /// A row with its padding.
    ///
    /// # Safety
    /// The caller is a worker of the executor that claimed this activation (or the only owner, in
    /// tests), and within the running command no worker writes this row.
    pub(crate) unsafe fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.0.rows);
        // SAFETY: in bounds; the caller answers for writers.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(row * self.0.stride), self.0.stride) }
    }

    /// A row with its padding, to write. The padding must stay zero.
    ///
    /// # Safety
    /// As for [`Activation::row`], and within the running command no other worker reads or writes
    /// this row.
    #[expect(clippy::mut_from_ref, reason = "a team shares activations; the contract is above")]
    pub(crate) unsafe fn row_mut(&self, row: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.segment_mut(row, 0..self.0.stride) }
    }

    /// Some columns of a row, to write.
    ///
    /// # Safety
    /// As for [`Activation::row_mut`], for these columns alone.
    #[expect(clippy::mut_from_ref, reason = "a team shares activations; the contract is above")]
    pub(crate) unsafe fn segment_mut(
        &self,
        row: usize,
        cols: std::ops::Range<usize>,
    ) -> &mut [f32] {
        assert!(row < self.0.rows && cols.end <= self.0.stride);
        let start = row * self.0.stride + cols.start;
        // SAFETY: in bounds; the caller answers for other workers.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().add(start), cols.len()) }
    }
}

/// f32 parameters of one dimension, padded with zeros to whole vectors. Never change.
#[derive(Clone, Debug)]
pub struct Parameters(Arc<ParameterMemory>);

#[derive(Debug)]
struct ParameterMemory {
    len: usize,
    data: AlignedBuffer,
}

impl Parameters {
    /// A copy of `values`.
    pub(crate) fn new(values: &[f32]) -> Result<Self, KernelError> {
        let padded = values.len().next_multiple_of(LANES_MAX);
        let mut data = AlignedBuffer::zeroed(padded * 4, "parameters")?;
        data.as_mut_slice::<f32>()[..values.len()].copy_from_slice(values);
        Ok(Parameters(Arc::new(ParameterMemory { len: values.len(), data })))
    }

    /// Number of values.
    #[expect(clippy::len_without_is_empty, reason = "parameters are never empty")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        &self.0.data.as_slice()[..self.0.len]
    }

    /// The values and the zeros after them, whole vectors.
    pub(crate) fn padded(&self) -> &[f32] {
        &self.0.data.as_slice()[..self.0.len.next_multiple_of(LANES_MAX)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        for bytes in [0, 1, 64, 4096, HUGE_PAGE + 5] {
            let buffer = AlignedBuffer::zeroed(bytes, "test").unwrap();
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            assert!(buffer.as_slice::<u8>()[..bytes].iter().all(|&byte| byte == 0));
            assert!(buffer.len() >= bytes);
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(AlignedBuffer::zeroed(usize::MAX - 100, "test").is_err());
        assert!(Activation::new(usize::MAX / 8, 1 << 20).is_err());
        assert!(Activation::new(1, usize::MAX).is_err());
    }

    #[test]
    fn a_claim_is_taken_once() {
        let claim = Claim::default();
        assert!(claim.take());
        assert!(!claim.take());
        claim.release();
        assert!(claim.take());
    }
}
