//! How long a step takes, learned from the steps that ran.
//!
//! `time = fixed + per_row × rows + per_read × reads`, where `reads` counts the keys that rows
//! attend to. The three numbers are a least-squares fit in which older steps fade, with a small
//! ridge so that equal steps in a row leave it solvable.

/// The size of a step, as far as its time depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepSize {
    /// T.
    pub rows: f64,
    /// Keys read: the sum over rows of their positions.
    pub reads: f64,
}

impl StepSize {
    /// The size of a chunk of `rows` rows from position `base`.
    pub fn chunk(base: u32, rows: u32) -> Self {
        let rows = f64::from(rows);
        StepSize { rows, reads: rows * (f64::from(base) + rows / 2.0) }
    }
}

impl std::ops::AddAssign for StepSize {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.reads += other.reads;
    }
}

/// Learned cost of a step.
#[derive(Clone, Debug, Default)]
pub struct CostModel {
    /// Faded sums of x·xᵀ and x·time with x = (1, rows, reads / 1024).
    xx: [[f64; 3]; 3],
    xy: [f64; 3],
    /// Seconds: fixed, per row, per 1024 reads. All at least 0.
    weights: [f64; 3],
    num_steps: u32,
}

/// What is left of an older step's weight after each step.
const FADE: f64 = 0.98;
/// Steps before the model is believed.
const WARM_UP: u32 = 4;
const READS_UNIT: f64 = 1024.0;
/// Rows that a chunk may have whatever the time budget says, so that every prompt advances.
const MIN_CHUNK: u32 = 16;

impl CostModel {
    /// Learns that a step of `size` took `seconds`.
    pub fn learn(&mut self, size: StepSize, seconds: f64) {
        let x = [1.0, size.rows, size.reads / READS_UNIT];
        for i in 0..3 {
            for j in 0..3 {
                self.xx[i][j] = self.xx[i][j] * FADE + x[i] * x[j];
            }
            self.xy[i] = self.xy[i] * FADE + x[i] * seconds;
        }
        self.num_steps = self.num_steps.saturating_add(1);
        self.weights = self.fit();
    }

    /// Seconds that a step of `size` will take; 0 while nothing is known.
    pub fn predict(&self, size: StepSize) -> f64 {
        if self.num_steps < WARM_UP {
            return 0.0;
        }
        let [fixed, per_row, per_read] = self.weights;
        fixed + per_row * size.rows + per_read * size.reads / READS_UNIT
    }

    /// How many of `rows` rows from position `base` can join a step of `size` so that it takes at
    /// most `seconds`; at least [`MIN_CHUNK`] if so many are wanted.
    pub fn rows_within(&self, seconds: f64, size: StepSize, base: u32, rows: u32) -> u32 {
        let left = seconds - self.predict(size);
        let whole = StepSize::chunk(base, rows);
        let [_, per_row, per_read] = self.weights;
        // A row of the chunk costs as much as its average row: later rows read more.
        let cost = per_row + per_read * whole.reads / whole.rows.max(1.0) / READS_UNIT;
        if self.num_steps < WARM_UP || left >= cost * f64::from(rows) {
            return rows;
        }
        let affordable = if cost > 0.0 { (left / cost).max(0.0) as u32 } else { rows };
        affordable.max(MIN_CHUNK).min(rows)
    }

    /// Solves the normal equations; a number that comes out negative is fixed at 0.
    fn fit(&self) -> [f64; 3] {
        let mut used = [true; 3];
        loop {
            let weights = self.solve(used);
            match weights.iter().position(|&weight| weight < 0.0) {
                Some(negative) => used[negative] = false,
                None => return weights,
            }
        }
    }

    /// Gaussian elimination over the used unknowns; the others are 0. The matrix is symmetric and
    /// positive definite thanks to the ridge, so no pivoting is needed.
    fn solve(&self, used: [bool; 3]) -> [f64; 3] {
        let mut a = self.xx;
        let mut b = self.xy;
        for i in 0..3 {
            a[i][i] += a[i][i] * 1e-6 + 1e-9;
            if !used[i] {
                a.iter_mut().for_each(|row| row[i] = 0.0);
                a[i] = [0.0; 3];
                (a[i][i], b[i]) = (1.0, 0.0);
            }
        }
        for i in 0..3 {
            for row in i + 1..3 {
                let factor = a[row][i] / a[i][i];
                let above = a[i];
                a[row].iter_mut().zip(above).for_each(|(value, above)| *value -= factor * above);
                b[row] -= factor * b[i];
            }
        }
        let mut weights = [0.0; 3];
        for i in (0..3).rev() {
            let known: f64 = (i + 1..3).map(|j| a[i][j] * weights[j]).sum();
            weights[i] = (b[i] - known) / a[i][i];
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taught(fixed: f64, per_row: f64, per_read: f64) -> CostModel {
        let mut model = CostModel::default();
        for step in 0..200_u32 {
            let size = StepSize::chunk(step * 37 % 900, 1 + step * 13 % 64);
            model.learn(size, fixed + per_row * size.rows + per_read * size.reads);
        }
        model
    }

    #[test]
    fn learns_the_three_costs() {
        let model = taught(1e-3, 1e-4, 1e-7);
        let size = StepSize::chunk(500, 40);
        let expected = 1e-3 + 1e-4 * size.rows + 1e-7 * size.reads;
        assert!((model.predict(size) / expected - 1.0).abs() < 0.02, "{:?}", model.weights);
    }

    #[test]
    fn a_chunk_is_cut_to_the_time_left_but_advances() {
        let model = taught(1e-3, 1e-4, 0.0);
        let none = StepSize::default();
        assert_eq!(model.rows_within(1.0, none, 0, 64), 64);
        assert!((45..=55).contains(&model.rows_within(6e-3, none, 0, 200)));
        assert_eq!(model.rows_within(0.0, none, 0, 200), MIN_CHUNK);
        assert_eq!(
            CostModel::default().rows_within(0.0, none, 0, 200),
            200,
            "nothing is known yet"
        );
    }

    #[test]
    fn equal_steps_in_a_row_keep_it_finite_and_not_negative() {
        let mut model = CostModel::default();
        for step in 0..10_000 {
            model.learn(StepSize::chunk(100, 1), 1e-3 + f64::from(step % 7) * 1e-6);
        }
        assert!(model.weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0));
        assert!((model.predict(StepSize::chunk(100, 1)) - 1e-3).abs() < 1e-4);
    }
}
