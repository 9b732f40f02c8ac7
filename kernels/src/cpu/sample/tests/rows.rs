//! One row: greedy, broken logits, log-probabilities.

use super::*;
use crate::cpu::sample::describe::Describe;
use crate::cpu::test_team::noise;
use crate::reference::sample::{History, adjusted_logits, log_softmax};
use crate::sampling::SampledRow;

fn logits(case: usize, vocab: usize) -> Vec<f32> {
    // Few distinct values, so that ties happen.
    (0..vocab).map(|token| (noise(case, token, 1) * 40.0).round() / 8.0).collect()
}

#[test]
fn greedy_takes_the_lowest_of_the_largest_on_every_instruction_set() {
    for isa in Isa::available() {
        for case in 0..60 {
            let vocab = [1, 7, 255, 256, 257, 1000][case % 6];
            let logits = logits(case, vocab);
            let token = case as u32 % vocab as u32;
            let mut params = SamplerParams::default();
            match case / 6 % 5 {
                1 => params.logit_bias = vec![(token, 11.0)],
                2 => params.allowed = vec![token / 2, token],
                3 => (params.min_tokens, params.suppressed) = (3, vec![token]),
                4 => (params.repetition_penalty, params.frequency_penalty) = (1.5, 0.75),
                _ => {}
            }
            let output = [token, token];
            let history = History { prompt: &[0], output: &output };
            let adjusted = adjusted_logits(&logits, &params, history);
            let best = adjusted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if best == f64::NEG_INFINITY {
                continue;
            }
            let wanted = adjusted.iter().position(|&logit| logit == best).unwrap();
            let slot = slot(params, &[0], &output);
            assert_eq!(draw(isa, &logits, &slot, 2, &mut Scratch::new(vocab)), wanted);
        }
    }
}

#[test]
fn broken_logits_never_win() {
    let nan = f32::NAN;
    let impossible = f32::NEG_INFINITY;
    for temperature in [0.0, 1.0] {
        let drawn = |logits: &[f32], params: SamplerParams| {
            let params = SamplerParams { temperature, ..params };
            let mut scratch = Scratch::new(logits.len());
            draw(Isa::detect(), logits, &slot(params, &[], &[]), 0, &mut scratch)
        };
        let plain = SamplerParams::default;
        assert_eq!(drawn(&[nan, impossible, -5.0, nan], plain()), 2);
        assert_eq!(drawn(&[nan, 1.0, f32::INFINITY, 2.0], plain()), 2);
        assert_eq!(drawn(&[nan, impossible, nan], plain()), 0);
        let allowed = SamplerParams { allowed: vec![2, 3], ..plain() };
        assert_eq!(drawn(&[1.0, 2.0, nan, impossible], allowed.clone()), 2);
        let suppressed = SamplerParams { min_tokens: 1, suppressed: vec![0, 2], ..plain() };
        assert_eq!(drawn(&[nan, nan, nan], suppressed.clone()), 1);
        let only = SamplerParams { min_tokens: 1, suppressed: vec![2, 3], ..allowed };
        assert_eq!(drawn(&[1.0, 2.0, 3.0, 4.0], only), 2);
        let beyond = SamplerParams { logit_bias: vec![(9, 1.0)], allowed: vec![1, 9], ..plain() };
        assert_eq!(drawn(&[1.0, 2.0, 3.0], beyond), 1);
    }
}

#[test]
fn log_probabilities_ranks_and_top_lists_are_exact() {
    for isa in Isa::available() {
        for case in 0..40 {
            let vocab = [1, 20, 256, 300, 1537][case % 5];
            let logits = logits(case, vocab);
            let exact = log_softmax(&logits);
            let mut ranked: Vec<usize> = (0..vocab).collect();
            ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let token = case * 31 % vocab;
            let mut top = vec![(0, 0.0); (case % 7 * 5).min(vocab)];
            let row =
                isa.dispatch(Describe { logits: &logits, token: token as u32, top: &mut top });
            assert!((f64::from(row.logprob) - exact[token]).abs() < 2e-6);
            assert_eq!(row.rank as usize, 1 + ranked.iter().position(|&t| t == token).unwrap());
            assert_eq!(row.top_len as usize, top.len());
            for (&(token, logprob), &wanted) in top.iter().zip(&ranked) {
                assert_eq!(token as usize, wanted);
                assert!((f64::from(logprob) - exact[wanted]).abs() < 2e-6);
            }
        }
    }
}

#[test]
fn broken_logits_have_no_nan_log_probability() {
    let mut top = [(0, 0.0); 3];
    let mut describe = |logits: &[f32], token| -> SampledRow {
        Isa::detect().dispatch(Describe { logits, token, top: &mut top })
    };
    let row = describe(&[f32::NAN, 0.0, f32::NEG_INFINITY, 0.0], 0);
    assert_eq!((row.logprob, row.rank), (f32::NEG_INFINITY, 3));
    let row = describe(&[f32::NAN, 0.0, f32::NEG_INFINITY, 0.0], 3);
    assert!((row.logprob + std::f32::consts::LN_2).abs() < 1e-6);
    assert_eq!(row.rank, 2);
    assert_eq!(describe(&[f32::NAN; 4], 1).logprob, f32::NEG_INFINITY);
    assert_eq!(top, [0, 1, 2].map(|token| (token, f32::NEG_INFINITY)));
}
