//! Times launches: many in a row between two waits, on the host's clock.
//!
//! The driver needs no events for it. A batch is long enough that the waits do not count; kernels that
//! end sooner than the host can launch them show the cost of a launch instead, and are told by it.

use std::sync::Arc;
use std::time::Instant;

use super::Size;
use crate::cuda::driver::{DeviceBuffer, Driver};
use crate::error::KernelError;

/// A clock around launches.
pub(super) struct Stopwatch {
    /// Read to wait for all that was launched.
    word: DeviceBuffer,
    size: Size,
}

/// Seconds of one batch of launches.
const BATCH_S: f64 = 0.02;
/// Launches of a batch at most.
const LAUNCHES_MAX: f64 = 20_000.0;
/// Batches of a figure.
const ROUNDS: usize = 5;

impl Stopwatch {
    pub(super) fn new(driver: &Arc<dyn Driver>, size: Size) -> Result<Self, KernelError> {
        Ok(Stopwatch { word: DeviceBuffer::new(driver, 4, "a stopwatch")?, size })
    }

    /// Seconds of one call of `launch`, which gets the number of the call, in each of some rounds.
    pub(super) fn time(
        &self,
        launch: &mut dyn FnMut(usize) -> Result<(), KernelError>,
    ) -> Result<Vec<f64>, KernelError> {
        if self.size == Size::Tiny {
            return Ok(vec![self.batch(1, launch)?]);
        }
        // The first loads the kernel; the next say how many make a batch.
        self.batch(2, launch)?;
        let one = self.batch(4, launch)?;
        let count = (BATCH_S / one).clamp(2.0, LAUNCHES_MAX) as usize;
        (0..ROUNDS).map(|_| self.batch(count, launch)).collect()
    }

    /// Seconds of one of `count` calls.
    fn batch(
        &self,
        count: usize,
        launch: &mut dyn FnMut(usize) -> Result<(), KernelError>,
    ) -> Result<f64, KernelError> {
        self.wait()?;
        let began = Instant::now();
        for call in 0..count {
            launch(call)?;
        }
        self.wait()?;
        Ok(began.elapsed().as_secs_f64() / count as f64)
    }

    fn wait(&self) -> Result<(), KernelError> {
        self.word.download(0, &mut [0; 4])
    }
}
