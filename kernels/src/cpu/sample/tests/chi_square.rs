//! 100,000 seeds a parameter and a pair of parameters against exact probabilities.
//!
//! The statistic of each case stays below the quantile that a right sampler exceeds once in 3.5
//! million cases (5 standard deviations, by Wilson and Hilferty's approximation). Seeds are fixed,
//! so the outcome is too.

use super::*;
use crate::reference::sample::{History, probabilities};

const NUM_SEEDS: u32 = 100_000;

const LOGITS: [f32; 14] =
    [0.3, 1.9, -0.4, 1.1, 2.2, -1.6, 0.8, 1.5, -0.1, 0.6, 2.05, -2.3, 1.3, 0.05];
const PROMPT: [u32; 4] = [1, 3, 3, 8];
const OUTPUT: [u32; 5] = [4, 7, 4, 12, 4];

/// A parameter's name, and how it is set where it is not off.
type Parameter = (&'static str, fn(&mut SamplerParams));

const PARAMETERS: [Parameter; 10] = [
    ("temperature", |params| params.temperature = 0.6),
    ("top_k", |params| params.top_k = 6),
    ("top_p", |params| params.top_p = 0.8),
    ("min_p", |params| params.min_p = 0.25),
    ("frequency_penalty", |params| params.frequency_penalty = 0.4),
    ("presence_penalty", |params| params.presence_penalty = -0.7),
    ("repetition_penalty", |params| params.repetition_penalty = 1.4),
    ("min_tokens", |params| (params.min_tokens, params.suppressed) = (9, vec![10, 1])),
    ("logit_bias", |params| params.logit_bias = vec![(2, 2.5), (4, -1.5)]),
    ("allowed", |params| params.allowed = vec![0, 1, 2, 4, 6, 7, 10, 12]),
];

/// Whether drawn tokens have the probabilities of `expected`: `Err` with what speaks against it.
fn compare(params: &SamplerParams, expected: &SamplerParams) -> Result<(), String> {
    let mut counts = [0u32; LOGITS.len()];
    let mut scratch = Scratch::new(LOGITS.len());
    for seed in 0..NUM_SEEDS {
        let params = SamplerParams { seed: u64::from(seed), ..params.clone() };
        let slot = slot(params, &PROMPT, &OUTPUT);
        counts[draw(Isa::detect(), &LOGITS, &slot, OUTPUT.len() as u32, &mut scratch)] += 1;
    }
    let history = History { prompt: &PROMPT, output: &OUTPUT };
    let exact = probabilities(&LOGITS, expected, history);
    let mut statistic = 0.0;
    let mut classes = 0;
    for (token, (&count, &probability)) in counts.iter().zip(&exact).enumerate() {
        if probability == 0.0 {
            if count > 0 {
                return Err(format!("token {token} is impossible but was drawn {count} times"));
            }
            continue;
        }
        let mean = probability * f64::from(NUM_SEEDS);
        assert!(mean > 5.0, "too rare for the approximation");
        statistic += (f64::from(count) - mean).powi(2) / mean;
        classes += 1;
    }
    let limit = quantile(classes - 1);
    if statistic > limit {
        return Err(format!("chi-square {statistic} over {limit}, {counts:?} for {exact:?}"));
    }
    Ok(())
}

/// What chi-square with `freedom` degrees exceeds once in 3.5 million times.
fn quantile(freedom: u32) -> f64 {
    if freedom == 0 {
        return 1e-9;
    }
    let freedom = f64::from(freedom);
    let variance = 2.0 / (9.0 * freedom);
    freedom * (1.0 - variance + 5.0 * variance.sqrt()).powi(3)
}

fn with(set: &[usize]) -> SamplerParams {
    let mut params = SamplerParams { temperature: 1.0, ..SamplerParams::default() };
    set.iter().for_each(|&index| PARAMETERS[index].1(&mut params));
    params
}

#[test]
fn each_parameter_alone_has_the_exact_probabilities() {
    assert_eq!(compare(&with(&[]), &with(&[])), Ok(()));
    for (index, (name, _)) in PARAMETERS.iter().enumerate() {
        let params = with(&[index]);
        compare(&params, &params).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
}

#[test]
fn each_pair_of_parameters_has_the_exact_probabilities() {
    for (first, (first_name, _)) in PARAMETERS.iter().enumerate() {
        for (second, (second_name, _)) in PARAMETERS.iter().enumerate().take(first) {
            let params = with(&[first, second]);
            let names = (first_name, second_name);
            compare(&params, &params).unwrap_or_else(|reason| panic!("{names:?}: {reason}"));
        }
    }
}

#[test]
fn planted_faults_are_found() {
    let top_p = with(&[2]);
    let kept = |top_p: f32| {
        let params = SamplerParams { temperature: 1.0, top_p, ..SamplerParams::default() };
        let history = History { prompt: &PROMPT, output: &OUTPUT };
        probabilities(&LOGITS, &params, history).iter().filter(|&&p| p > 0.0).count()
    };
    // One token more and one less than top_p keeps, by top_k.
    for top_k in [kept(0.8) - 1, kept(0.8) + 1] {
        let wrong = SamplerParams { top_k: top_k as u32, ..with(&[]) };
        assert!(compare(&wrong, &top_p).is_err());
    }
    let changed: [fn(&mut SamplerParams); 6] = [
        |params| params.temperature = 1.06,
        |params| params.min_p = 0.2,
        |params| params.frequency_penalty = 0.05,
        |params| params.presence_penalty = 0.1,
        |params| params.repetition_penalty = 1.1,
        |params| params.logit_bias = vec![(4, 0.15)],
    ];
    for change in changed {
        let mut wrong = with(&[]);
        change(&mut wrong);
        assert!(compare(&wrong, &with(&[])).is_err(), "{wrong:?}");
    }
}

#[test]
fn choices_and_positions_are_independent() {
    // Two draws of one seed: each token pair is as likely as its product.
    let params = with(&[]);
    let exact = probabilities(&LOGITS, &params, History::default());
    let mut scratch = Scratch::new(LOGITS.len());
    for (choice, position) in [(1, 0), (0, 1)] {
        let mut both = 0.0;
        for seed in 0..NUM_SEEDS {
            let mut tokens = [(0, 0), (choice, position)].map(|(choice, position)| {
                let params = SamplerParams { seed: u64::from(seed), choice, ..params.clone() };
                draw(Isa::detect(), &LOGITS, &slot(params, &[], &[]), position, &mut scratch)
            });
            tokens.sort_unstable();
            both += f64::from(u32::from(tokens == [4, 4]));
        }
        let mean = exact[4] * exact[4] * f64::from(NUM_SEEDS);
        assert!((both - mean).abs() < 5.0 * mean.sqrt(), "{both} for {mean}");
    }
}
