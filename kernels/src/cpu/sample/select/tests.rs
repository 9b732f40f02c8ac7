//! The tokens kept by threshold are those that a full sort in float64 keeps.

use super::*;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::sample::passes::CHUNK;
use crate::cpu::test_team::noise;
use crate::reference::sample::{History, probabilities};

struct Select<'a> {
    selection: &'a mut Selection,
    params: &'a SamplerParams,
    logits: &'a [f32],
}

impl Kernel for Select<'_> {
    /// The weights that are left.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let mut exponents = self.logits.to_vec();
        exponents.resize(self.logits.len().next_multiple_of(CHUNK), f32::NEG_INFINITY);
        let mut weights = vec![0.0; exponents.len()];
        let (_, largest) = passes::argmax::<S>(self.logits).unwrap();
        let scale = 1.0 / self.params.temperature;
        passes::exponentials::<S>(&mut exponents, &mut weights, largest, scale);
        self.selection.apply::<S>(self.params, &exponents, &mut weights);
        weights
    }
}

fn kept(isa: Isa, logits: &[f32], params: &SamplerParams) -> Vec<usize> {
    let mut selection = Selection::new(logits.len());
    let weights = isa.dispatch(Select { selection: &mut selection, params, logits });
    (0..weights.len()).filter(|&token| weights[token] > 0.0).collect()
}

fn wanted(logits: &[f32], params: &SamplerParams) -> Vec<usize> {
    let probabilities = probabilities(logits, params, History::default());
    (0..logits.len()).filter(|&token| probabilities[token] > 0.0).collect()
}

#[test]
fn thresholds_keep_what_a_sort_keeps() {
    for isa in Isa::available() {
        for case in 0..160 {
            let vocab = [1, 17, 256, 1000, 3001][case % 5];
            // Every other case has few distinct logits, so that limits fall among equals.
            let steps = if case % 2 == 0 { 4.0 } else { 1e5 };
            let spread = [0.5, 3.0, 12.0][case % 3];
            let logits: Vec<f32> = (0..vocab)
                .map(|token| (noise(case, token, 0) * steps).round() / steps * spread)
                .collect();
            let params = SamplerParams {
                temperature: [0.3, 1.0, 2.5][case / 3 % 3],
                top_k: [0, 1, 7, 100, 5000][case / 2 % 5],
                top_p: [1.0, 0.0, 0.313, 0.9001, 0.99][case / 5 % 5],
                min_p: [0.0, 0.0501, 0.4003][case / 7 % 3],
                ..SamplerParams::default()
            };
            assert_eq!(kept(isa, &logits, &params), wanted(&logits, &params), "{vocab} {params:?}");
        }
    }
}

#[test]
fn a_probability_that_top_p_only_just_reaches_is_enough() {
    // 0.3 as f32 is a little more than 3/10.
    let params = SamplerParams { temperature: 1.0, top_p: 0.3, ..SamplerParams::default() };
    assert_eq!(kept(Isa::detect(), &[1.0; 10], &params), [0, 1, 2]);
}

#[test]
fn the_best_token_stays_under_every_limit() {
    let params = SamplerParams {
        temperature: 1e-5,
        top_k: 1,
        top_p: 0.0,
        min_p: 1.0,
        ..SamplerParams::default()
    };
    assert_eq!(kept(Isa::detect(), &[-3e38, 2.0, 3e38, 3e38], &params), [2]);
}
