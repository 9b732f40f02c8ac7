//! When requests arrive: delays from the beginning of a run, drawn from a seed.
//!
//! Times between arrivals are gamma-distributed with a mean of 1 / rate and the burstiness as shape:
//! 1 is a Poisson process, less comes in bursts, infinity is a clock. At a fixed rate all delays are
//! then stretched so that the last request of N comes at N / rate, whatever the seed.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::Gamma;

use crate::serve::arguments::RampUpStrategy;

/// A rate that grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RampUp {
    /// How.
    pub strategy: RampUpStrategy,
    /// Requests a second at the first request.
    pub start: f64,
    /// At the last.
    pub end: f64,
}

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrivals {
    /// Requests a second; infinite: all at once.
    pub rate: f64,
    /// Shape of the distribution.
    pub burstiness: f64,
    /// Instead of one rate.
    pub ramp_up: Option<RampUp>,
}

impl Arrivals {
    /// Delays of `count` requests, ascending.
    pub fn delays(&self, count: usize, random: &mut ChaCha8Rng) -> Result<Vec<Duration>> {
        let mut delays = Vec::with_capacity(count);
        let mut delay = 0.0;
        for index in 0..count {
            delay += self.gap(self.rate_at(index, count), random)?;
            delays.push(delay);
        }
        if self.ramp_up.is_none() && delay > 0.0 {
            let stretch = count as f64 / self.rate / delay;
            delays.iter_mut().for_each(|delay| *delay *= stretch);
        }
        let durations = delays.into_iter().map(Duration::try_from_secs_f64);
        durations.collect::<Result<_, _>>().context("arrivals at this rate take too long")
    }

    fn gap(&self, rate: f64, random: &mut ChaCha8Rng) -> Result<f64> {
        if rate.is_infinite() {
            return Ok(0.0);
        }
        if self.burstiness.is_infinite() {
            return Ok(1.0 / rate);
        }
        let gamma = Gamma::new(self.burstiness, 1.0 / (rate * self.burstiness));
        Ok(random.sample(gamma.context("rate and burstiness are not numbers above 0")?))
    }

    /// The rate when request `index` of `count` is due.
    fn rate_at(&self, index: usize, count: usize) -> f64 {
        let Some(RampUp { strategy, start, end }) = self.ramp_up else { return self.rate };
        let progress = index as f64 / (count - 1).max(1) as f64;
        match strategy {
            RampUpStrategy::Linear => start + (end - start) * progress,
            RampUpStrategy::Exponential => start * (end / start).powf(progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn delays(rate: f64, burstiness: f64, ramp_up: Option<RampUp>, seed: u64) -> Vec<f64> {
        let arrivals = Arrivals { rate, burstiness, ramp_up };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let delays = arrivals.delays(4000, &mut random).unwrap();
        delays.iter().map(Duration::as_secs_f64).collect()
    }

    /// Deviation of the gaps over their mean: 1 / sqrt(shape) for a gamma distribution.
    fn variation(delays: &[f64]) -> f64 {
        let gaps: Vec<f64> = delays.windows(2).map(|two| two[1] - two[0]).collect();
        let gaps = crate::serve::statistics::Distribution::new(gaps);
        gaps.std() / gaps.mean()
    }

    #[test]
    fn a_rate_is_met_to_the_end_and_burstiness_is_its_shape() {
        for (burstiness, wanted) in [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (f64::INFINITY, 0.0)] {
            let delays = delays(50.0, burstiness, None, 3);
            assert!(delays.is_sorted());
            assert!((delays[3999] - 80.0).abs() < 1e-6, "{burstiness}: {}", delays[3999]);
            let found = variation(&delays);
            assert!((found - wanted).abs() < 0.1, "{burstiness}: {found}, not {wanted}");
        }
    }

    #[test]
    fn an_infinite_rate_is_all_at_once() {
        assert!(delays(f64::INFINITY, 1.0, None, 0).iter().all(|&delay| delay == 0.0));
    }

    #[test]
    fn seeds_repeat_and_differ() {
        assert_eq!(delays(5.0, 1.0, None, 1), delays(5.0, 1.0, None, 1));
        assert_ne!(delays(5.0, 1.0, None, 1), delays(5.0, 1.0, None, 2));
    }

    #[test]
    fn a_ramp_goes_from_one_rate_to_the_other() {
        let rates = |strategy| {
            let ramp_up = RampUp { strategy, start: 10.0, end: 1000.0 };
            let delays = delays(f64::INFINITY, f64::INFINITY, Some(ramp_up), 0);
            let rate = |index: usize| 1.0 / (delays[index + 1] - delays[index]);
            [rate(0), rate(1999), rate(3998)]
        };
        let near = |found: [f64; 3], wanted: [f64; 3]| {
            let close = |(f, w): (&f64, &f64)| (f / w - 1.0).abs() < 0.03;
            assert!(found.iter().zip(&wanted).all(close), "{found:?}");
        };
        near(rates(RampUpStrategy::Linear), [10.0, 505.0, 1000.0]);
        near(rates(RampUpStrategy::Exponential), [10.0, 100.0, 1000.0]);
    }
}
