//! What a library of the device's maker offers for products of many rows, where there is one.
//!
//! A driver brings it. It knows several ways for a shape, of which the fastest is found by trying. Knows
//! nothing of ops.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::cuda::driver::DevicePointer;
use crate::error::KernelError;

/// A product `out[rows, n] = x[rows, k] * weight[n, k]^T` of bf16, in f32, of any number of rows. Rows lie
/// one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LibraryShape {
    /// Rows of the weight.
    pub(crate) n: u32,
    /// Columns of x and of the weight.
    pub(crate) k: u32,
    /// Whether it is added to what `out` has.
    pub(crate) adds: bool,
    /// Whether a bias `[n]` of f32 is added.
    pub(crate) has_bias: bool,
}

/// Where a product's matrices are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LibraryOperands {
    pub(crate) rows: u32,
    pub(crate) x: DevicePointer,
    pub(crate) weight: DevicePointer,
    pub(crate) bias: DevicePointer,
    pub(crate) out: DevicePointer,
    /// As many bytes as the way was asked for with.
    pub(crate) workspace: DevicePointer,
}

/// A way to compute products of one shape, as its library numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way(pub(crate) u32);

/// A library of products.
pub(crate) trait ProductLibrary: Debug + Send + Sync {
    /// Name and version: others add up in other ways.
    fn name(&self) -> String;

    /// Up to `most` ways to compute products of these numbers of rows, the likely fastest first. None is
    /// no error: not every shape has one. Not during a capture.
    fn ways(
        &self,
        shape: LibraryShape,
        rows: RangeInclusive<u32>,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<Way>, KernelError>;

    /// Starts a product in the order of the driver's stream, captured or not. False: this way does not
    /// compute so many rows after all, and nothing was started.
    ///
    /// # Safety
    /// All matrices are allocated, large enough and aligned to 256 bytes, and nobody else uses the
    /// workspace in the same stream's order.
    unsafe fn multiply(&self, way: Way, operands: &LibraryOperands) -> Result<bool, KernelError>;
}
