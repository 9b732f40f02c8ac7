//! Products of rows with the matrices of their experts: by expert if there are many rows, else row by row.

use std::sync::Arc;

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::linear::Linear;
use crate::cuda::linear_choice::{TILINGS, Target, Tiling, choose_grouped, is_in_bytes};
use crate::cuda::linear_tensor::{Groups, TensorLinear};
use crate::cuda::moe::{Group, ROW_TILE_BYTES};
use crate::cuda::quantize_rows::ByteRows;
use crate::error::KernelError;
use crate::weight_format::WeightFormat;

/// Multiplies with experts.
#[derive(Debug)]
pub(crate) struct ExpertProducts {
    driver: Arc<dyn Driver>,
    target: Target,
    order: DeviceBuffer,
    tiles: DeviceBuffer,
    /// Rows of x as weights in blocks meet them.
    byte_rows: DeviceBuffer,
}

/// How the products of one layer are computed. `None`: row by row.
pub(crate) type Ways = Option<(Tiling, Groups)>;

impl ExpertProducts {
    /// Room for up to `pairs` pairs of a row and one of up to `num_experts` experts, and for as many
    /// bytes of rows ([`byte_rows_bytes`]) as any product with weights in blocks takes.
    ///
    /// [`byte_rows_bytes`]: crate::cuda::quantize_rows::byte_rows_bytes
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        target: Target,
        (pairs, num_experts): (usize, usize),
        bytes: usize,
    ) -> Result<Self, KernelError> {
        // The smallest tiles are the most.
        let tiles = Group::tiles_max(pairs as u32, num_experts as u32, TILINGS[0].rows) as usize;
        Ok(ExpertProducts {
            driver: Arc::clone(driver),
            target,
            // Not empty: a device has no empty memory.
            order: DeviceBuffer::new(driver, pairs.max(1) * 4, "rows by expert")?,
            tiles: DeviceBuffer::new(driver, tiles.max(1) * ROW_TILE_BYTES, "tiles of experts")?,
            byte_rows: DeviceBuffer::new(driver, bytes.max(1), "rows for experts")?,
        })
    }

    /// Puts `pairs` rows in the order of their `experts`, if that is how they are multiplied with weights
    /// of this format and of so many columns at most.
    ///
    /// # Safety
    /// `experts` has an expert below `num_experts` for each; there is room for them.
    pub(crate) unsafe fn prepare(
        &self,
        experts: DevicePointer,
        pairs: u32,
        num_experts: u32,
        weights: (WeightFormat, u32),
    ) -> Result<Ways, KernelError> {
        let Some(tiling) = choose_grouped(&self.target, pairs, num_experts, weights) else {
            return Ok(None);
        };
        let (order, tiles) = (self.order.pointer(), self.tiles.pointer());
        let num_tiles = Group::tiles_max(pairs, num_experts, tiling.rows);
        let tile_rows = tiling.rows;
        let group =
            Group { experts, order, tiles, num_pairs: pairs, num_experts, num_tiles, tile_rows };
        // SAFETY: the caller's promise.
        unsafe { group.launch(&*self.driver) }?;
        Ok(Some((tiling, Groups { order, tiles, num_tiles })))
    }

    /// Multiplies rows with the matrices of their experts, of `format`.
    ///
    /// # Safety
    /// Every pointer has what linear_epilogue.cuh says for the rows that `ways` was prepared for.
    pub(crate) unsafe fn launch(
        &self,
        linear: &Linear,
        ways: &Ways,
        format: WeightFormat,
    ) -> Result<(), KernelError> {
        let driver = &*self.driver;
        let multiprocessors = self.target.multiprocessors;
        // SAFETY: the caller's promise.
        unsafe {
            match ways {
                Some((tiling, groups)) => {
                    let (product, cut) = TensorLinear::grouped(*linear, *tiling, *groups);
                    if !is_in_bytes(format) {
                        return product.launch(driver, &cut, format);
                    }
                    let size = (linear.rows / linear.rows_per_x, linear.k);
                    let room = self.byte_rows.pointer();
                    let x = ByteRows::launch(driver, linear.x, size, room, multiprocessors)?;
                    product.launch_bytes(driver, &cut, format, x)
                }
                None => linear.launch_few(driver, format, multiprocessors),
            }
        }
    }
}
