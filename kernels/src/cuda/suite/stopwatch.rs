//! Times launches: many in a row between two waits, on the host's clock.
//!
//! The driver needs no events for it. A batch is long enough that the waits do not count. Kernels are
//! timed in a graph of them, as steps replay theirs, so that none waits for the host to launch it.

use std::sync::Arc;
use std::time::Instant;

use super::Size;
use crate::cuda::driver::{DeviceBuffer, Driver, GraphIndex};
use crate::error::KernelError;

/// A clock around launches.
pub(super) struct Stopwatch {
    driver: Arc<dyn Driver>,
    /// Read to wait for all that was asked for.
    word: DeviceBuffer,
    size: Size,
}

/// What is timed: gets the number of the call.
pub(super) type Call<'a> = dyn FnMut(usize) -> Result<(), KernelError> + 'a;

/// Launches that are replayed together.
pub(super) struct Recorded {
    driver: Arc<dyn Driver>,
    graph: GraphIndex,
}

/// Seconds of one batch.
const BATCH_S: f64 = 0.02;
/// Calls of a batch at most.
const CALLS_MAX: f64 = 20_000.0;
/// Seconds of a graph, and its calls at most.
const GRAPH_S: f64 = 0.004;
const RECORDED_MAX: f64 = 512.0;
/// Batches of a figure.
const ROUNDS: usize = 5;

impl Stopwatch {
    pub(super) fn new(driver: &Arc<dyn Driver>, size: Size) -> Result<Self, KernelError> {
        let word = DeviceBuffer::new(driver, 4, "a stopwatch")?;
        Ok(Stopwatch { driver: Arc::clone(driver), word, size })
    }

    /// Seconds of one call of `launch`, which only launches, in each of some rounds: in a graph, from
    /// one kernel to the next.
    pub(super) fn time(&self, launch: &mut Call<'_>) -> Result<Vec<f64>, KernelError> {
        if self.size == Size::Tiny {
            let recorded = self.record(1, launch)?;
            return Ok(vec![self.batch(1, &mut |_| recorded.replay())?]);
        }
        // The first loads the kernel; the next say how many make a graph.
        self.batch(2, launch)?;
        let one = self.batch(4, launch)?;
        let calls = (GRAPH_S / one).clamp(2.0, RECORDED_MAX) as usize;
        let recorded = self.record(calls, launch)?;
        let samples = self.time_asked(&mut |_| recorded.replay())?;
        Ok(samples.into_iter().map(|seconds| seconds / calls as f64).collect())
    }

    /// Seconds of one call of `ask`, whatever it asks for, in each of some rounds.
    pub(super) fn time_asked(&self, ask: &mut Call<'_>) -> Result<Vec<f64>, KernelError> {
        if self.size == Size::Tiny {
            return Ok(vec![self.batch(1, ask)?]);
        }
        self.batch(2, ask)?;
        let one = self.batch(2, ask)?;
        let count = (BATCH_S / one).clamp(2.0, CALLS_MAX) as usize;
        (0..ROUNDS).map(|_| self.batch(count, ask)).collect()
    }

    /// Records `calls` calls of `launch` as one graph.
    pub(super) fn record(
        &self,
        calls: usize,
        launch: &mut Call<'_>,
    ) -> Result<Recorded, KernelError> {
        self.driver.begin_capture()?;
        let launched = (0..calls).try_for_each(launch);
        // Also behind an error: a capture must not stay open.
        let graph = self.driver.end_capture();
        launched?;
        Ok(Recorded { driver: Arc::clone(&self.driver), graph: graph? })
    }

    /// Waits for all that was asked for.
    pub(super) fn wait(&self) -> Result<(), KernelError> {
        self.word.download(0, &mut [0; 4])
    }

    /// Seconds of one of `count` calls.
    fn batch(&self, count: usize, ask: &mut Call<'_>) -> Result<f64, KernelError> {
        self.wait()?;
        let began = Instant::now();
        for call in 0..count {
            ask(call)?;
        }
        self.wait()?;
        Ok(began.elapsed().as_secs_f64() / count as f64)
    }
}

impl Recorded {
    /// Starts all launches once more.
    pub(super) fn replay(&self) -> Result<(), KernelError> {
        // SAFETY: whoever recorded the launches keeps what they use until the times are there.
        unsafe { self.driver.replay(self.graph) }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.driver.release_graph(self.graph);
    }
}
