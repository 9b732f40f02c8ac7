//! What a library of the device's maker offers for products of many rows, where there is one.
//!
//! A driver brings it. It knows several ways for a shape, of which the fastest is found by trying. What
//! it refuses is no fault of the device: nothing needs a library. Knows nothing of ops.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::cuda::driver::DevicePointer;
use crate::error::KernelError;

/// A product `out[rows, n] = x[rows, k] * weight[n, k]^T` of bf16, in f32, of any number of rows. Rows lie
/// one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// Why a library did not do what it was asked for. If the device is at fault, the driver says so at the
/// next wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which function gave what.
    pub(crate) words: String,
    /// Whether nothing was started for certain, so that another kernel may do all of it.
    pub(crate) started_nothing: bool,
}

impl From<Refusal> for KernelError {
    fn from(refusal: Refusal) -> Self {
        KernelError::Unsupported(refusal.words)
    }
}

/// A library of products.
pub(crate) trait ProductLibrary: Debug + Send + Sync {
    /// Name and version: others add up in other ways.
    fn name(&self) -> String;

    /// Up to `most` ways to compute products of these numbers of rows, the likely fastest first. None is
    /// no refusal: not every shape has one. Not during a capture.
    fn ways(
        &self,
        shape: LibraryShape,
        rows: RangeInclusive<u32>,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<Way>, Refusal>;

    /// What is alike for ways that compute alike, in libraries of one name.
    fn identity(&self, way: Way) -> Vec<u64>;

    /// Starts a product in the order of the driver's stream, captured or not; the first of a way and a
    /// number of rows not captured, since it may load code.
    ///
    /// # Safety
    /// All matrices are allocated, large enough and aligned to 256 bytes, and nobody else uses the
    /// workspace in the same stream's order.
    unsafe fn multiply(&self, way: Way, operands: &LibraryOperands) -> Result<(), Refusal>;
}
