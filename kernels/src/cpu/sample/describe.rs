//! Log-probabilities of a row: of one token, its rank, and the most likely tokens.
//!
//! Always of the raw logits: penalties, temperature and the rest do not change them.
//! A log-probability is never NaN; an impossible token's is −∞.

use super::adjust::clean;
use super::passes;
use crate::cpu::isa::Kernel;
use crate::cpu::simd::Simd;
use crate::sampling::SampledRow;

/// Describes `token` by the row's raw logits.
pub(crate) struct Describe<'a> {
    /// `[V]` raw logits.
    pub(crate) logits: &'a [f32],
    /// Below V.
    pub(crate) token: u32,
    /// Filled with the most likely tokens and their log-probabilities; at most V.
    pub(crate) top: &'a mut [(u32, f32)],
}

impl Kernel for Describe<'_> {
    /// The row but for where its top list lies.
    type Output = SampledRow;

    #[inline(always)]
    fn run<S: Simd>(self) -> SampledRow {
        let Describe { logits, token, top } = self;
        let log_sum = match passes::argmax::<S>(logits) {
            Some((_, largest)) => passes::log_sum::<S>(logits, largest),
            // Every token is impossible: so is each.
            None => 0.0,
        };
        let logprob = |logit: f32| (f64::from(clean(logit)) - log_sum) as f32;
        passes::most_likely::<S>(logits, top);
        for (_, value) in top.iter_mut() {
            *value = logprob(*value);
        }
        SampledRow {
            token,
            logprob: logprob(logits[token as usize]),
            rank: passes::rank::<S>(logits, token as usize),
            top_start: 0,
            top_len: top.len() as u32,
        }
    }
}
