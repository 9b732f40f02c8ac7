//! Random choices from a seed: what cases and worlds are drawn with.

/// The same throws for the same seed, everywhere.
pub(in crate::cuda) struct Dice(pub(in crate::cuda) u64);

impl Dice {
    /// A number from 0 to `n` − 1.
    pub(in crate::cuda) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        for _ in 0..2 {
            x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        (x >> 33) as usize % n
    }

    /// A number from 1 to `most`, as often of one size as of another.
    pub(in crate::cuda) fn size(&mut self, most: usize) -> usize {
        let bits = most.max(1).ilog2() as usize + 1;
        let top = 1 << self.below(bits);
        (top + self.below(top)).min(most)
    }

    /// One of `choices`.
    pub(in crate::cuda) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// True once in `n` times.
    pub(in crate::cuda) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A number in [0, 1).
    pub(in crate::cuda) fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 24) as f32
    }

    /// A number about 0, as often near it as a sum of four.
    pub(in crate::cuda) fn bell(&mut self) -> f32 {
        (0..4).map(|_| self.unit() - 0.5).sum::<f32>() * 1.7
    }

    /// Up to `len_max` tokens, one at least.
    pub(in crate::cuda) fn tokens(&mut self, len_max: usize, below: usize) -> Vec<u32> {
        (0..1 + self.below(len_max)).map(|_| self.below(below) as u32).collect()
    }
}
