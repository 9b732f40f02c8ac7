//! Numbers as bytes, for copies to a device and back.

use crate::batch::BlockCopy;

/// Numbers, or structs of numbers, that the host and a kernel lay out alike.
///
/// # Safety
/// No padding, and every pattern of bits is a value.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: two numbers.
unsafe impl Plain for BlockCopy {}

/// The bytes of `values`.
pub(crate) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: initialised memory without padding, borrowed as long as `values`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of `values`, to be written.
#[allow(dead_code, reason = "for downloads, which no step makes")]
pub(crate) fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every pattern of bits is a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
