//! Every product of a program: each goes the way that was chosen for its shape, through memory that was
//! allocated when the executor started.

use std::collections::HashSet;
use std::sync::Arc;

use crate::cuda::driver::{DeviceBuffer, Driver};
use crate::cuda::linear::{Linear, stride_of};
use crate::cuda::linear_choice::{Method, ProductShape, Target, choose, is_in_bytes, may_norm};
use crate::cuda::linear_hopper::{TILE_ROWS, narrowed_bytes};
use crate::cuda::linear_hopper_quantized::placed_bytes;
use crate::cuda::linear_library::{LibraryProducts, may_serve};
use crate::cuda::linear_tensor::{Meeting, TensorLinear};
use crate::cuda::norm::{Norm, Put};
use crate::cuda::quantize_rows::{ByteRows, byte_rows_bytes};
use crate::device::Found;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::weight_format::WeightFormat;

/// Multiplies.
#[derive(Debug)]
pub(crate) struct Products {
    driver: Arc<dyn Driver>,
    target: Target,
    partials: DeviceBuffer,
    arrivals: DeviceBuffer,
    /// Rows of x as Hopper's products and the library want them, or those with weights in blocks.
    narrowed: DeviceBuffer,
    /// Where there is one, for some of the shapes.
    library: Option<LibraryProducts>,
}

impl Products {
    /// Room for products of these shapes and of fewer rows.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        target: Target,
        shapes: &HashSet<ProductShape>,
    ) -> Result<Self, KernelError> {
        let floats = shapes.iter().map(|shape| partial_floats_max(&target, *shape)).max();
        // Not empty: a device has no empty memory.
        let bytes = floats.unwrap_or(0).max(1) * 4;
        let narrowed = shapes.iter().map(|shape| narrowed_bytes_max(&target, *shape)).max();
        let narrowed = DeviceBuffer::new(driver, narrowed.unwrap_or(0).max(1), "rounded rows")?;
        let served = shapes.iter().filter(|shape| may_serve(&target, shape));
        let library = match served.map(|shape| shape.rows).max() {
            Some(rows) => Some(LibraryProducts::new(driver, &target, (rows, narrowed.pointer()))?),
            None => None,
        };
        Ok(Products {
            driver: Arc::clone(driver),
            target,
            partials: DeviceBuffer::new(driver, bytes, "sums of products")?,
            arrivals: DeviceBuffer::new(driver, target.meetings_max() as usize * 4, "arrivals")?,
            narrowed,
            library,
        })
    }

    /// Finds out which of these plain products of bf16, each of its most rows, go to the library. Steps of
    /// `captured` rows will be recorded. Spoils what they write, and their x. Before the first step and
    /// the first graph.
    ///
    /// # Safety
    /// As [`Self::launch`] for each of them, and nothing else runs.
    pub(crate) unsafe fn find_ways(
        &mut self,
        products: &[Linear],
        captured: &[u32],
    ) -> Result<(), KernelError> {
        let Some(mut library) = self.library.take() else { return Ok(()) };
        // SAFETY: the caller's promise.
        let own = |linear: &Linear| unsafe { self.launch_own(linear, DType::Bf16.into()) };
        // SAFETY: the caller's promise.
        unsafe { library.find_ways(products, captured, &own) }?;
        self.library = Some(library);
        Ok(())
    }

    /// What was found to go to the library, and what was left aside.
    pub(crate) fn found(&self) -> Found {
        self.library.as_ref().map_or_else(Found::default, LibraryProducts::found)
    }

    /// How many shapes and buckets of rows go to the library.
    #[cfg(test)]
    pub(crate) fn num_library_ways(&self) -> usize {
        self.library.as_ref().map_or(0, LibraryProducts::num_ways)
    }

    /// Whether a row's results do not depend on the rows beside it.
    pub(crate) fn are_deterministic(&self) -> bool {
        self.target.options.deterministic
    }

    /// Norms rows, which leaves them in the norm's `out`, and multiplies them; or multiplies what it
    /// norms itself, with the same bits, and leaves `out` as it is. `linear` takes rows from `out`.
    ///
    /// # Safety
    /// As [`Self::launch`], and every pointer of the norm has what norm.cu says.
    pub(crate) unsafe fn launch_normed(
        &self,
        norm: &Norm,
        linear: &Linear,
        format: WeightFormat,
    ) -> Result<(), KernelError> {
        let Linear { rows, n, k, .. } = *linear;
        // SAFETY: the caller's promise.
        unsafe {
            if may_norm(&self.target, ProductShape { rows, n, k, format }) {
                let normed = Linear { x: norm.x, norm: norm.weight, eps: norm.eps, ..*linear };
                return self.launch(&normed, format);
            }
            norm.launch(&*self.driver, Put::Store, rows)?;
            self.launch(linear, format)
        }
    }

    /// Multiplies rows with a weight of `format`.
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh says for its rows, and the shape is one of those that there
    /// is room for.
    pub(crate) unsafe fn launch(
        &self,
        linear: &Linear,
        format: impl Into<WeightFormat>,
    ) -> Result<(), KernelError> {
        let format = format.into();
        if let (Some(library), WeightFormat::Plain(format)) = (&self.library, format) {
            // SAFETY: the caller's promise.
            if unsafe { library.launch(linear, format) }? {
                return Ok(());
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.launch_own(linear, format) }
    }

    /// By kernels of our own.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_own(&self, linear: &Linear, format: WeightFormat) -> Result<(), KernelError> {
        let Linear { x, rows, n, k, .. } = *linear;
        let driver = &*self.driver;
        let (room, multiprocessors) = (self.narrowed.pointer(), self.target.multiprocessors);
        // SAFETY: the caller's promise; a cut's sums and rows fit the room for its shape.
        unsafe {
            match choose(&self.target, ProductShape { rows, n, k, format }) {
                Method::Rows => linear.launch_few(driver, format, multiprocessors),
                Method::Tiled => linear.launch_tiled(driver),
                Method::Tensor(cut) => {
                    let partials = self.partials.pointer();
                    let meeting = Meeting { partials, arrivals: self.arrivals.pointer() };
                    let product = TensorLinear::dense(*linear, &cut, meeting);
                    if !is_in_bytes(format) {
                        return product.launch(driver, &cut, format);
                    }
                    let x = ByteRows::launch(driver, x, (rows, k), room, multiprocessors)?;
                    product.launch_bytes(driver, &cut, format, x)
                }
                Method::Hopper(tiling, format) => {
                    tiling.launch(driver, linear, (room, format), multiprocessors)
                }
                Method::HopperQuantized(tiling, quantization) => {
                    tiling.launch(driver, linear, (room, quantization), multiprocessors)
                }
            }
        }
    }
}

/// Floats that products of a shape leave in memory for their last block, for the worst number of rows.
fn partial_floats_max(target: &Target, shape: ProductShape) -> usize {
    // Tiles have sixteen rows or a multiple, so that between multiples nothing changes.
    let rows = (16..shape.rows).step_by(16).chain([shape.rows]);
    let floats = rows.map(|rows| match choose(target, ProductShape { rows, ..shape }) {
        Method::Tensor(cut) => cut.partial_floats(rows, shape.n),
        _ => 0,
    });
    floats.max().unwrap_or(0)
}

/// Bytes that rows of x take in memory for products of a shape, for the worst number of rows.
fn narrowed_bytes_max(target: &Target, shape: ProductShape) -> usize {
    // Of each way the most rows take the most.
    let rows = (TILE_ROWS..shape.rows).step_by(TILE_ROWS as usize).chain([shape.rows]);
    let bytes = rows.map(|rows| {
        let shape = ProductShape { rows, ..shape };
        let own = match choose(target, shape) {
            Method::Hopper(_, format) => {
                narrowed_bytes(rows as usize, stride_of(shape.k as usize, format), format)
            }
            Method::HopperQuantized(..) => placed_bytes(rows as usize, shape.k as usize),
            Method::Tensor(_) if is_in_bytes(shape.format) => {
                byte_rows_bytes(rows as usize, shape.k as usize)
            }
            _ => 0,
        };
        if !may_serve(target, &shape) {
            return own;
        }
        let stride = stride_of(shape.k as usize, DType::Bf16);
        own.max(narrowed_bytes(rows as usize, stride, DType::Bf16))
    });
    bytes.max().unwrap_or(0)
}
