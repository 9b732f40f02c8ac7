//! Mean, median, deviation and percentiles, as numpy computes them by default.
//!
//! Nothing at all counts as one zero, so that a run without a single token still has a result.

/// Values of one metric, in seconds, ascending.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    sorted: Vec<f64>,
}

impl Distribution {
    /// Of these values, in any order.
    pub fn new(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            values.push(0.0);
        }
        values.sort_by(f64::total_cmp);
        Distribution { sorted: values }
    }

    /// The arithmetic mean.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The standard deviation of just these values (not an estimate for more of them).
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        let squares = self.sorted.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (squares / self.sorted.len() as f64).sqrt()
    }

    /// The value in the middle, or between the two there.
    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    /// What `percent` (0 to 100) of the values do not exceed, interpolated between the two nearest.
    pub fn percentile(&self, percent: f64) -> f64 {
        let place = (percent / 100.0).clamp(0.0, 1.0) * (self.sorted.len() - 1) as f64;
        let below = self.sorted[place.floor() as usize];
        let above = self.sorted[place.ceil() as usize];
        below + (above - below) * place.fract()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_numpy() {
        // numpy 2: np.percentile([15, 20, 35, 40, 50], [5, 30, 40, 99, 100]), np.std, np.mean.
        let five = Distribution::new(vec![40.0, 15.0, 50.0, 35.0, 20.0]);
        for (percent, value) in
            [(5.0, 16.0), (30.0, 23.0), (40.0, 29.0), (99.0, 49.6), (100.0, 50.0)]
        {
            assert!((five.percentile(percent) - value).abs() < 1e-12, "{percent}");
        }
        assert_eq!((five.median(), five.mean()), (35.0, 32.0));
        assert!((five.std() - 12.884098726725126).abs() < 1e-12);
        assert_eq!(Distribution::new(vec![1.0, 2.0, 3.0, 10.0]).median(), 2.5);
    }

    #[test]
    fn one_value_is_every_percentile_and_none_is_zero() {
        let one = Distribution::new(vec![7.0]);
        assert_eq!(
            [one.percentile(0.0), one.percentile(99.9), one.mean(), one.std()],
            [7.0, 7.0, 7.0, 0.0]
        );
        let none = Distribution::new(Vec::new());
        assert_eq!([none.mean(), none.median(), none.percentile(99.0), none.std()], [0.0; 4]);
    }
}
