//! Which way to a product is the fastest: our own kernels and a library's ways, timed as steps run them.
//!
//! Start, before any graph: launches on several weights in turn are recorded and replayed, so that the
//! host's part in them does not count. Whatever a library does wrong costs it one of its ways, as long as
//! the driver still waits without an error; never the start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cuda::driver::{Driver, GraphIndex, MarkIndex};
use crate::cuda::linear::Linear;
use crate::cuda::product_library::Way;
use crate::error::KernelError;

/// Launches a product.
pub(crate) type Multiply<'a> = dyn Fn(&Linear) -> Result<(), KernelError> + 'a;

/// Launches a product in one of a library's ways.
pub(crate) type MultiplyBy<'a> = dyn Fn(Way, &Linear) -> Result<(), KernelError> + 'a;

/// Tries ways.
pub(crate) struct Trials<'a> {
    driver: &'a dyn Driver,
    mark: MarkIndex,
    /// Why ways were left aside, and how many.
    left_aside: BTreeMap<String, u32>,
}

/// A product that several can do.
pub(crate) struct Contest<'a> {
    /// On weights in turn, so that none is in the card's cache.
    pub(crate) turns: &'a [Linear],
    /// Numbers of rows that steps will meet in a graph, or first.
    pub(crate) rows: &'a [u32],
    /// Our own kernels.
    pub(crate) own: &'a Multiply<'a>,
    /// The library's.
    pub(crate) by: &'a MultiplyBy<'a>,
}

/// What a library must take, of our own kernels' time, at most: less is the noise of the measurement.
const SHARE_MAX: f64 = 0.97;
/// Of the best time so far, beyond which nothing is measured twice.
const HOPELESS: u32 = 2;
/// Replays between two waits take so long, that the waits do not count; and are so many at most.
const ROUND_S: f64 = 0.001;
const REPLAYS_MAX: f64 = 32.0;
const ROUNDS: usize = 2;

impl<'a> Trials<'a> {
    /// Waits by `mark`, which nobody else has.
    pub(crate) fn new(driver: &'a dyn Driver, mark: MarkIndex) -> Self {
        Trials { driver, mark, left_aside: BTreeMap::new() }
    }

    /// For people: what was left aside, of a library of this name.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let line = |(why, count)| format!("of {name} {count} ways are left aside: {why}");
        self.left_aside.iter().map(line).collect()
    }

    /// What was tried, or nothing if that failed, which is told. An error is the driver's own.
    pub(crate) fn tried<T>(
        &mut self,
        outcome: Result<T, impl Into<KernelError>>,
    ) -> Result<Option<T>, KernelError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(why) => {
                *self.left_aside.entry(why.into().to_string()).or_default() += 1;
                self.wait()?;
                Ok(None)
            }
        }
    }

    /// The fastest of `ways` that is faster than our own kernels, and can do all that steps will ask for.
    pub(crate) fn fastest(
        &mut self,
        contest: &Contest<'_>,
        ways: &[Way],
    ) -> Result<Option<Way>, KernelError> {
        let Contest { turns, rows, own, by } = *contest;
        let own_first = self.time(turns, own, Duration::MAX)?;
        let (mut least, mut timed) = (own_first, Vec::new());
        for &way in ways {
            let took = self.time(turns, &|linear| by(way, linear), least);
            if let Some(took) = self.tried(took)? {
                least = least.min(took);
                timed.push((took, way));
            }
        }
        if least == own_first {
            return Ok(None);
        }
        // Clocks go up and down meanwhile.
        let own_took = own_first.min(self.time(turns, own, Duration::MAX)?);
        timed.sort_by_key(|(took, _)| *took);
        for (took, way) in timed {
            if !is_gain(took, own_took) {
                break;
            }
            let proved = self.prove(turns, rows, &|linear| by(way, linear));
            if self.tried(proved)?.is_some() {
                return Ok(Some(way));
            }
        }
        Ok(None)
    }

    /// Multiplies each of these numbers of rows, by itself and then recorded: other rows may be other
    /// kernels, and one that is loaded while a step is recorded can end the recording.
    fn prove(
        &self,
        turns: &[Linear],
        rows: &[u32],
        multiply: &Multiply<'_>,
    ) -> Result<(), KernelError> {
        let Some(linear) = turns.first() else { return Ok(()) };
        let each: Vec<Linear> = rows.iter().map(|&rows| Linear { rows, ..*linear }).collect();
        each.iter().try_for_each(multiply)?;
        self.wait()?;
        let graph = self.record(&each, multiply)?;
        self.driver.release_graph(graph);
        Ok(())
    }

    /// The least time that `multiply` took for all of `turns`. `best` is the best of others.
    fn time(
        &self,
        turns: &[Linear],
        multiply: &Multiply<'_>,
        best: Duration,
    ) -> Result<Duration, KernelError> {
        // What is loaded late is loaded here.
        turns.first().map_or(Ok(()), multiply)?;
        self.wait()?;
        let graph = self.record(turns, multiply)?;
        let least = self.least(graph, best.saturating_mul(HOPELESS));
        self.driver.release_graph(graph);
        least
    }

    /// The least time of a replay, or the first if that is beyond `most`.
    fn least(&self, graph: GraphIndex, most: Duration) -> Result<Duration, KernelError> {
        let mut least = self.replay(graph, 1)?;
        if least > most {
            return Ok(least);
        }
        let count = (ROUND_S / least.as_secs_f64()).clamp(1.0, REPLAYS_MAX) as u32;
        for _ in 0..ROUNDS {
            least = least.min(self.replay(graph, count)? / count);
        }
        Ok(least)
    }

    /// The time of so many replays.
    fn replay(&self, graph: GraphIndex, count: u32) -> Result<Duration, KernelError> {
        let began = Instant::now();
        for _ in 0..count {
            // SAFETY: whoever made the launches keeps what they use while ways are tried.
            unsafe { self.driver.replay(graph) }?;
        }
        self.wait()?;
        Ok(began.elapsed())
    }

    fn record(
        &self,
        linears: &[Linear],
        multiply: &Multiply<'_>,
    ) -> Result<GraphIndex, KernelError> {
        self.driver.begin_capture()?;
        let launched = linears.iter().try_for_each(multiply);
        // Also behind an error: a capture must not stay open.
        let graph = self.driver.end_capture();
        if let (Err(_), Ok(graph)) = (&launched, &graph) {
            self.driver.release_graph(*graph);
        }
        launched.and(graph)
    }

    fn wait(&self) -> Result<(), KernelError> {
        self.driver.mark(self.mark)?;
        self.driver.wait(self.mark)
    }
}

/// Whether it is worth leaving our own kernels.
fn is_gain(took: Duration, own: Duration) -> bool {
    took < own.mul_f64(SHARE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_hardly_faster_is_not_taken() {
        let us = Duration::from_micros;
        assert!(is_gain(us(96), us(100)) && is_gain(us(1), us(1000)));
        assert!(!is_gain(us(98), us(100)) && !is_gain(us(100), us(100)));
        assert!(!is_gain(us(200), us(100)));
    }
}
