//! Rotary embedding, resolved at load into one table of cosines and sines.
//!
//! Every scaling is a choice of inverse frequencies and of one factor on cosine and sine. Some
//! (dynamic, longrope) depend on a length: they are resolved once, for the maximum model length,
//! so that rope is a function of position alone and a cached key never turns again.
//! Angles are computed in f64: position × frequency in f32 loses four digits at 2,000 tokens.

use std::f64::consts::TAU;

use pagoda_kernels::ops::RopeStyle;
use rayon::prelude::*;

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that turn: even, at least 4.
    pub rotary_dim: usize,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// `max_position_embeddings` of the checkpoint.
    pub max_position: u32,
    /// Whether that is the length with the scaling.
    pub stretched_positions: bool,
    /// What makes longer contexts possible.
    pub scaling: RopeScaling,
    /// From this length n on, the query at position p is multiplied by the logarithm of p + 1 to
    /// the base n. All of a head turns then.
    pub query_log_base: Option<u32>,
}

/// The published ways to stretch a rope. Factors are at least 1, lengths at least 1.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by the factor.
    Linear {
        /// How much longer.
        factor: f64,
    },
    /// NTK-aware: theta grows with the length beyond `max_position`.
    Dynamic {
        /// Of the published formula.
        factor: f64,
    },
    /// NTK-aware: theta grows whenever the length doubles beyond `trained_len`.
    SteppedNtk {
        /// Length of the training, at least 2.
        trained_len: u32,
    },
    /// Llama 3: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// How much longer.
        factor: f64,
        /// Turns within the original length below which a frequency is divided.
        low_freq_factor: f64,
        /// Turns above which it is kept.
        high_freq_factor: f64,
        /// Length of the pre-training.
        original_len: u32,
    },
    /// YaRN (Peng et al. 2023): a ramp over dimensions, and a factor on attention.
    Yarn {
        /// How much longer.
        factor: f64,
        /// On cosine and sine.
        attention_factor: f64,
        /// Turns at which the ramp begins.
        beta_fast: f64,
        /// Turns at which the ramp ends.
        beta_slow: f64,
        /// Whether the ramp's ends are whole dimensions.
        truncate: bool,
        /// Length of the pre-training.
        original_len: u32,
    },
    /// LongRoPE: a published factor for each frequency, one list for each of two regimes.
    LongRope {
        /// Lengths up to `original_len`; rotary_dim / 2 values.
        short_factor: Vec<f64>,
        /// Lengths beyond; rotary_dim / 2 values.
        long_factor: Vec<f64>,
        /// On cosine and sine.
        attention_factor: f64,
        /// Length of the pre-training.
        original_len: u32,
    },
}

impl RopeSpec {
    /// The longest sequence the checkpoint promises; `None` if its rope stretches to any length.
    pub fn promised_len(&self) -> Option<u32> {
        let stretched = |len: u32, factor: f64| (f64::from(len) * factor) as u32;
        match &self.scaling {
            _ if self.stretched_positions => Some(self.max_position),
            RopeScaling::Dynamic { .. } | RopeScaling::SteppedNtk { .. } => None,
            RopeScaling::Linear { factor } => Some(stretched(self.max_position, *factor)),
            RopeScaling::Yarn { factor, original_len, .. } => {
                Some(self.max_position.max(stretched(*original_len, *factor)))
            }
            RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } => {
                Some(self.max_position)
            }
        }
    }

    /// `[max_model_len, rotary_dim]`: for each position rotary_dim / 2 cosines, then as many
    /// sines, the attention factor multiplied in.
    pub fn table(&self, max_model_len: u32) -> Vec<f32> {
        let (frequencies, factor) = self.frequencies(max_model_len);
        let half = frequencies.len();
        let mut table = vec![0.0; max_model_len as usize * 2 * half];
        table.par_chunks_mut(2 * half).enumerate().for_each(|(position, row)| {
            let (cosines, sines) = row.split_at_mut(half);
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (*cosine, *sine) = ((cos * factor) as f32, (sin * factor) as f32);
            }
        });
        table
    }

    /// The table of queries, where it is another than that of keys for some position.
    pub fn query_table(&self, max_model_len: u32) -> Option<Vec<f32>> {
        let base = self.query_log_base.filter(|base| *base < max_model_len)?;
        let mut table = self.table(max_model_len);
        let rows = table.chunks_exact_mut(self.rotary_dim).enumerate().skip(base as usize);
        for (position, row) in rows {
            let factor = (position as f64 + 1.0).ln() / f64::from(base).ln();
            row.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        }
        Some(table)
    }

    /// Elements of both tables.
    pub fn table_elements(&self, max_model_len: u32) -> u64 {
        let grows = self.query_log_base.is_some_and(|base| base < max_model_len);
        u64::from(max_model_len) * self.rotary_dim as u64 * (1 + u64::from(grows))
    }

    /// Radians per position of each pair, and the factor on cosine and sine.
    fn frequencies(&self, max_model_len: u32) -> (Vec<f64>, f64) {
        match &self.scaling {
            RopeScaling::Default => (self.plain(self.theta), 1.0),
            RopeScaling::Linear { factor } => {
                (self.plain(self.theta).into_iter().map(|f| f / factor).collect(), 1.0)
            }
            RopeScaling::Dynamic { factor } => {
                let len = f64::from(max_model_len.max(self.max_position));
                let stretch = factor * len / f64::from(self.max_position) - (factor - 1.0);
                (self.ntk(stretch), 1.0)
            }
            RopeScaling::SteppedNtk { trained_len } => {
                let doublings = (f64::from(max_model_len) / f64::from(*trained_len)).log2().ceil();
                (self.ntk((doublings + 1.0).exp2().max(2.0) - 1.0), 1.0)
            }
            RopeScaling::Llama3 { .. } => (self.llama3(), 1.0),
            RopeScaling::Yarn { attention_factor, .. } => (self.yarn(), *attention_factor),
            RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_len } => {
                let factors =
                    if max_model_len > *original_len { long_factor } else { short_factor };
                let plain = self.plain(self.theta);
                let divided = plain.iter().zip(factors).map(|(f, by)| f / by).collect();
                (divided, *attention_factor)
            }
        }
    }

    /// `theta^(-2i / rotary_dim)`.
    fn plain(&self, theta: f64) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        (0..self.rotary_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / dim)).collect()
    }

    /// Frequencies of which the slowest is divided by `stretch`, the fastest not at all.
    fn ntk(&self, stretch: f64) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        self.plain(self.theta * stretch.powf(dim / (dim - 2.0)))
    }

    fn llama3(&self) -> Vec<f64> {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } =
            self.scaling
        else {
            return self.plain(self.theta);
        };
        let blend = |frequency: f64| {
            let turns = f64::from(original_len) * frequency / TAU;
            let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = ramp.clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        };
        self.plain(self.theta).into_iter().map(blend).collect()
    }

    fn yarn(&self) -> Vec<f64> {
        let RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_len, .. } =
            self.scaling
        else {
            return self.plain(self.theta);
        };
        let dim = self.rotary_dim as f64;
        // The dimension whose frequency makes `turns` full turns within the original length.
        let dim_of = |turns: f64| {
            dim * (f64::from(original_len) / (turns * TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dim_of(beta_fast), dim_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(pair, frequency): (usize, f64)| {
            let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            divided * frequency / factor + (1.0 - divided) * frequency
        };
        self.plain(self.theta).into_iter().enumerate().map(blend).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec {
            theta: 10000.0,
            rotary_dim: 64,
            style: RopeStyle::Halves,
            max_position: 512,
            stretched_positions: false,
            scaling,
            query_log_base: None,
        }
    }

    #[test]
    fn a_row_is_cosines_then_sines_of_its_position() {
        let table = spec(RopeScaling::Default).table(3);
        assert_eq!(table.len(), 3 * 64);
        assert_eq!((table[0], table[32]), (1.0, 0.0));
        let second = &table[2 * 64..];
        assert_eq!((second[0], second[32]), (2f64.cos() as f32, 2f64.sin() as f32));
        let slowest = 10000f64.powf(-62.0 / 64.0);
        assert_eq!(second[63], (2.0 * slowest).sin() as f32);
    }

    #[test]
    fn a_dynamic_rope_is_plain_up_to_its_own_length_and_slower_beyond() {
        let plain = spec(RopeScaling::Default);
        let dynamic = spec(RopeScaling::Dynamic { factor: 2.0 });
        assert_eq!(dynamic.table(512), plain.table(512));
        let (stretched, _) = dynamic.frequencies(1024);
        let (short, _) = plain.frequencies(1024);
        assert_eq!(stretched[0], 1.0);
        assert!(stretched[31] < short[31] / 2.0);
        assert_eq!(dynamic.promised_len(), None);
    }

    #[test]
    fn a_stepped_rope_slows_down_whenever_the_length_doubles() {
        let stepped = spec(RopeScaling::SteppedNtk { trained_len: 512 });
        let slowest = |len: u32| stepped.frequencies(len).0[31];
        let plain = stepped.plain(stepped.theta)[31];
        for (len, stretch) in [(1, 1.0), (512, 1.0), (513, 3.0), (1024, 3.0), (1025, 7.0)] {
            assert!((plain / slowest(len) / stretch - 1.0).abs() < 1e-12, "{len}");
            assert_eq!(stepped.frequencies(len).0[0], 1.0);
        }
        assert_eq!(stepped.promised_len(), None);
    }

    #[test]
    fn queries_grow_beyond_their_length_alone() {
        let plain = spec(RopeScaling::Default);
        let grown = RopeSpec { query_log_base: Some(16), ..plain.clone() };
        assert_eq!((plain.query_table(20), grown.query_table(16)), (None, None));
        assert_eq!((plain.table_elements(20), grown.table_elements(20)), (20 * 64, 2 * 20 * 64));
        let (keys, queries) = (grown.table(20), grown.query_table(20).unwrap());
        assert_eq!((&keys, &keys[..16 * 64]), (&plain.table(20), &queries[..16 * 64]));
        // Position 16 is the seventeenth token.
        let factor = (17f64.ln() / 16f64.ln()) as f32;
        assert!((queries[16 * 64] / keys[16 * 64] - factor).abs() < 1e-6);
    }

    #[test]
    fn yarn_keeps_the_fast_and_divides_the_slow_frequencies() {
        let yarn = spec(RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.5,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            original_len: 512,
        });
        let (frequencies, factor) = yarn.frequencies(2048);
        let plain = yarn.plain(yarn.theta);
        assert_eq!(frequencies[0], plain[0]);
        assert!((frequencies[31] - plain[31] / 4.0).abs() < 1e-15);
        assert_eq!((factor, yarn.promised_len()), (1.5, Some(2048)));
        assert_eq!(yarn.table(1)[0], 1.5);
    }

    #[test]
    fn longrope_chooses_its_list_by_the_maximum_length() {
        let rope = spec(RopeScaling::LongRope {
            short_factor: vec![1.0; 32],
            long_factor: vec![8.0; 32],
            attention_factor: 1.0,
            original_len: 256,
        });
        assert_eq!(rope.frequencies(256).0[0], 1.0);
        assert_eq!(rope.frequencies(257).0[0], 0.125);
    }
}
