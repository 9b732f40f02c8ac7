//! Where loads and values stand in a panel: shares of its width and height, and marks beside them.

/// Values that span more are drawn logarithmically.
const LINEAR_SPAN_MAX: f64 = 30.0;

/// The horizontal axis: loads, ascending; the last one may be infinite.
pub(super) struct Axis {
    pub(super) name: &'static str,
    pub(super) loads: Vec<f64>,
}

impl Axis {
    /// 0 to 1. An infinite load stands one doubling behind the last finite one.
    pub(super) fn share(&self, load: f64) -> f64 {
        let finite = self.loads.iter().rev().find(|load| load.is_finite()).copied().unwrap_or(1.0);
        let log = |load: f64| if load.is_finite() { load.log2() } else { finite.log2() + 1.0 };
        let ends = (self.loads.first(), self.loads.last());
        let (first, last) = (ends.0.map_or(0.0, |l| log(*l)), ends.1.map_or(0.0, |l| log(*l)));
        if last > first { (log(load) - first) / (last - first) } else { 0.5 }
    }
}

/// The vertical axis.
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
}

impl Scale {
    pub(super) fn new(values: impl Iterator<Item = f64> + Clone) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        let least = values.filter(|&value| value > 0.0).fold(f64::INFINITY, f64::min);
        if least.is_finite() && most / least > LINEAR_SPAN_MAX {
            let power = |value: f64| 10f64.powf(value);
            let (low, high) = (power(least.log10().floor()), power(most.log10().ceil()));
            return Scale { low, high, is_log: true };
        }
        let step = nice_step(most);
        let steps = (most / step).ceil().max(1.0);
        Scale { low: 0.0, high: step * steps, is_log: false }
    }

    /// 0 (bottom) to 1.
    pub(super) fn share(&self, value: f64) -> f64 {
        if self.is_log {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        }
    }

    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.high / self.low).log10().round() as i32;
            return (0..=decades).map(|power| self.low * 10f64.powi(power)).collect();
        }
        let step = nice_step(self.high);
        let count = (self.high / step).round() as u32;
        (0..=count).map(|index| f64::from(index) * step).collect()
    }
}

/// 1, 2 or 5 times a power of ten, of which three to seven make `most`.
fn nice_step(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    steps.into_iter().find(|step| most / step <= 6.0).unwrap_or(10.0 * power)
}
