//! Tensors as Hopper's copy engine knows them: what a map says, and the bytes that a kernel is given.
//!
//! A kernel names a place in the tensor and gets a box of it in shared memory, zeros where the box
//! leaves the tensor. Each driver encodes a map in its own way.

use crate::cuda::driver::DevicePointer;
use crate::dtype::DType;
use crate::error::KernelError;

/// A map, to be passed by value in a kernel's parameters. Mirrors `TensorMap` of ptx90.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(crate) struct TensorMap(pub(crate) [u8; 128]);

/// One axis of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Elements.
    pub(crate) size: usize,
    /// Bytes from one to the next.
    pub(crate) stride: usize,
    /// Elements that a box takes.
    pub(crate) taken: usize,
}

/// A tensor in device memory and the boxes that are copied of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMapSpec<'a> {
    /// The first element.
    pub(crate) address: DevicePointer,
    /// The type of the elements.
    pub(crate) format: DType,
    /// Two or three, the one of neighbouring elements first.
    pub(crate) axes: &'a [Axis],
    /// Whether lines of 128 bytes are swizzled as products want them, see ptx90.cuh. Else a box lies
    /// in shared memory as it is.
    pub(crate) swizzled: bool,
}

/// Bytes of a line in shared memory.
pub(crate) const LINE_BYTES: usize = 128;
/// Elements that a box may take of an axis.
const TAKEN_MAX: usize = 256;
/// An axis has fewer elements.
const SIZE_MAX: usize = 1 << 32;
/// A stride is less, in bytes.
const STRIDE_MAX: usize = 1 << 40;

impl TensorMapSpec<'_> {
    /// Checks what the hardware asks of a map.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let [inner, outer @ ..] = self.axes else { return Err(self.refused("no axes")) };
        let element = self.format.bytes();
        let sizes = self.axes.iter().all(|axis| (1..=SIZE_MAX).contains(&axis.size));
        let taken = self.axes.iter().all(|axis| (1..=TAKEN_MAX).contains(&axis.taken));
        let strides =
            outer.iter().all(|axis| axis.stride.is_multiple_of(16) && axis.stride < STRIDE_MAX);
        let line = inner.taken * element;
        let rules = [
            (matches!(outer.len(), 1 | 2), "a rank of neither 2 nor 3"),
            (self.address.0.is_multiple_of(16), "an address within 16 bytes"),
            (inner.stride == element, "elements apart"),
            (sizes, "a size"),
            (taken, "a box"),
            (strides, "a stride"),
            (line.is_multiple_of(16), "part of 16 bytes"),
            (!self.swizzled || line == LINE_BYTES, "a swizzled line of other than 128 bytes"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(self.refused(what)),
        }
    }

    /// Bytes from the first element to behind the last.
    pub(crate) fn extent(&self) -> usize {
        let last = self.axes.iter().map(|axis| (axis.size - 1) * axis.stride).sum::<usize>();
        last + self.format.bytes()
    }

    fn refused(&self, what: &str) -> KernelError {
        KernelError::Unsupported(format!("a tensor map with {what}: {self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hardware_refuses_is_refused() {
        let axis = |size, stride, taken| Axis { size, stride, taken };
        let check = |address, axes: &[Axis], swizzled| {
            let address = DevicePointer(address);
            TensorMapSpec { address, format: DType::Bf16, axes, swizzled }.check().is_ok()
        };
        let (line, rows) = (axis(100, 2, 64), axis(7, 208, 256));
        assert!(check(32, &[line, rows], true));
        assert!(check(32, &[line, rows, axis(3, 1456, 1)], false));
        let wrong: [(u64, &[Axis], bool); 9] = [
            (8, &[line, rows], true),
            (32, &[line], true),
            (32, &[], true),
            (32, &[line, rows, rows, rows], true),
            (32, &[axis(100, 4, 64), rows], true),
            (32, &[line, axis(7, 200, 256)], true),
            (32, &[line, axis(7, 208, 257)], true),
            (32, &[line, axis(0, 208, 1)], true),
            (32, &[axis(100, 2, 32), rows], true),
        ];
        for (address, axes, swizzled) in wrong {
            assert!(!check(address, axes, swizzled), "{address} {axes:?}");
        }
        assert!(!check(32, &[axis(100, 2, 12), rows], false));
    }
}
