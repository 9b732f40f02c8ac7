//! The exact probability of each token under sampling parameters, in float64.
//!
//! Sorts the whole vocabulary instead of looking for a threshold, and shares nothing with the
//! sampler but the order of the steps: penalties, bias, allowed, suppressed, temperature, min-p,
//! top-k, top-p.

use crate::sampling::SamplerParams;

/// A sum this close to top_p has reached it: top_p is an f32, and 0.3 is not 3/10 there.
const TOP_P_SLACK: f64 = 1e-6;

/// What a sequence holds when its next token is sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// Prompt tokens.
    pub prompt: &'a [u32],
    /// Tokens generated so far.
    pub output: &'a [u32],
}

/// The logits that sampling sees: raw ones after penalties, bias, allowed and suppressed tokens.
pub fn adjusted_logits(logits: &[f32], params: &SamplerParams, history: History<'_>) -> Vec<f64> {
    let allowed = |token: u32| params.allowed.is_empty() || params.allowed.contains(&token);
    let is_early = history.output.len() < params.min_tokens as usize;
    let suppressed = |token: u32| is_early && params.suppressed.contains(&token);
    let adjust = |(token, &logit): (usize, &f32)| {
        let token = token as u32;
        let generated = history.output.iter().filter(|&&other| other == token).count();
        let mut logit = if logit.is_nan() { f64::NEG_INFINITY } else { f64::from(logit) };
        if generated > 0 || history.prompt.contains(&token) {
            let penalty = f64::from(params.repetition_penalty);
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        if generated > 0 {
            logit -= f64::from(params.frequency_penalty) * generated as f64;
            logit -= f64::from(params.presence_penalty);
        }
        let bias = params.logit_bias.iter().filter(|(other, _)| *other == token);
        logit += bias.map(|(_, bias)| f64::from(*bias)).sum::<f64>();
        if allowed(token) && !suppressed(token) { logit } else { f64::NEG_INFINITY }
    };
    logits.iter().enumerate().map(adjust).collect()
}

/// The probability of each token. Greedy (temperature 0) gives 1 to the lowest of the largest.
pub fn probabilities(logits: &[f32], params: &SamplerParams, history: History<'_>) -> Vec<f64> {
    let logits = adjusted_logits(logits, params, history);
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let mut probabilities = vec![0.0; logits.len()];
    let best = logits[ranked[0]];
    if params.temperature == 0.0 {
        probabilities[ranked[0]] = 1.0;
        return probabilities;
    }
    let temperature = f64::from(params.temperature);
    let weight = |token: &usize| ((logits[*token] - best) / temperature).exp();
    ranked.retain(|token| weight(token) > 0.0 && weight(token) >= f64::from(params.min_p));
    if params.top_k > 0 {
        ranked.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let total: f64 = ranked.iter().map(weight).sum();
        let mut sum = 0.0;
        let reaches = |token: &usize| {
            sum += weight(token);
            sum >= f64::from(params.top_p) * total * (1.0 - TOP_P_SLACK)
        };
        let last = ranked.iter().position(reaches).unwrap_or(ranked.len() - 1);
        ranked.truncate(last + 1);
    }
    let total: f64 = ranked.iter().map(weight).sum();
    for token in &ranked {
        probabilities[*token] = weight(token) / total;
    }
    probabilities
}

/// Log-probabilities of raw logits.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    logits.iter().map(|logit| logit - largest - sum.ln()).collect()
}
