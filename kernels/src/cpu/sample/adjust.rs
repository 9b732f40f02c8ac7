//! From raw logits to those that sampling sees: penalties, bias, allowed and suppressed tokens.
//!
//! First step of a row that samples. The raw logits stay as they are, since log-probabilities are
//! those of the raw ones. Penalties come before the bias, so that a bias is exact in units of
//! logits whatever the penalties are.

use super::slot::TokenCounts;
use crate::sampling::SamplerParams;

/// Writes the adjusted logits of output token number `output_position` to `out`; both are `[V]`.
pub(crate) fn adjust(
    logits: &[f32],
    params: &SamplerParams,
    counts: &TokenCounts,
    output_position: u32,
    out: &mut [f32],
) {
    for (out, &logit) in out.iter_mut().zip(logits) {
        *out = clean(logit);
    }
    penalize(params, counts, out);
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = out.get_mut(token as usize) {
            *logit += bias;
        }
    }
    keep_allowed(&params.allowed, out);
    if output_position < params.min_tokens {
        for &token in &params.suppressed {
            if let Some(logit) = out.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Whether [`adjust`] would change any logit but broken ones.
pub(crate) fn is_adjusted(params: &SamplerParams, output_position: u32) -> bool {
    params.needs_token_counts()
        || !params.logit_bias.is_empty()
        || !params.allowed.is_empty()
        || output_position < params.min_tokens && !params.suppressed.is_empty()
}

/// A logit without NaN (impossible instead) and without +∞ (the largest number instead), so that
/// differences of logits are defined.
#[inline(always)]
pub(crate) fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// The token to give when every token is impossible: the lowest that is allowed and not
/// suppressed, else the lowest that is allowed.
pub(crate) fn lowest_possible(params: &SamplerParams, output_position: u32, vocab: usize) -> u32 {
    let suppressed: &[u32] =
        if output_position < params.min_tokens { &params.suppressed } else { &[] };
    let in_vocab = |token: &u32| (*token as usize) < vocab;
    let free = |token: &u32| in_vocab(token) && !suppressed.contains(token);
    let found = if params.allowed.is_empty() {
        (0..vocab as u32).find(free)
    } else {
        let allowed = || params.allowed.iter().copied();
        allowed().find(free).or_else(|| allowed().find(in_vocab))
    };
    found.unwrap_or(0)
}

/// Repetition over prompt and output, then frequency and presence over the output.
fn penalize(params: &SamplerParams, counts: &TokenCounts, out: &mut [f32]) {
    for entry in counts.entries() {
        let Some(logit) = out.get_mut(entry.token as usize) else { continue };
        if *logit > 0.0 {
            *logit /= params.repetition_penalty;
        } else {
            *logit *= params.repetition_penalty;
        }
        if entry.generated > 0 {
            *logit -= params.frequency_penalty * entry.generated as f32;
            *logit -= params.presence_penalty;
        }
        *logit = clean(*logit);
    }
}

/// Makes all but the `allowed` tokens (ascending) impossible; an empty list allows all.
fn keep_allowed(allowed: &[u32], out: &mut [f32]) {
    if allowed.is_empty() {
        return;
    }
    let mut start = 0;
    for &token in allowed {
        let token = (token as usize).min(out.len());
        if token > start {
            out[start..token].fill(f32::NEG_INFINITY);
        }
        start = start.max(token + 1);
    }
    if start < out.len() {
        out[start..].fill(f32::NEG_INFINITY);
    }
}
