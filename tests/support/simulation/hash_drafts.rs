//! Drafts that are right some of the time, so that commits take one to four tokens.

use std::sync::Arc;

use pagoda_engine::scheduler::draft::DraftSource;
use pagoda_engine::sequence::Sequence;

use super::closed_form::{Answer, mix};

/// Knows all answers and drafts up to three tokens of them, some wrong.
#[derive(Debug)]
pub struct HashDrafts {
    /// Answers by request and choice.
    pub answers: Arc<Vec<Vec<Answer>>>,
    /// V.
    pub vocab: u32,
    /// Makes the drafts of one simulation differ from those of another.
    pub seed: u64,
}

impl DraftSource for HashDrafts {
    fn draft(&mut self, sequence: &Sequence, max: usize, drafts: &mut Vec<u32>) {
        self.seed = mix(self.seed, 3);
        let request = sequence.sampler.logit_bias[0].0 as usize;
        let tokens = &self.answers[request][sequence.sampler.choice as usize].tokens;
        let start = sequence.output.len();
        for index in 0..max.min((self.seed % 4) as usize) {
            let right = tokens.get(start + index).copied().unwrap_or(0);
            let wrong = mix(self.seed, index as u64).is_multiple_of(3);
            drafts.push((right + u32::from(wrong)) % self.vocab);
        }
    }
}
