//! Where drafts of speculative decoding come from. None by default.

use crate::sequence::Sequence;

/// Guesses the next tokens of a sequence; a step then verifies them in one go. A wrong guess costs
/// rows, never the outcome.
pub trait DraftSource: Send + std::fmt::Debug {
    /// Appends up to `max` guesses of what follows the sequence's last token. Must be below the
    /// vocabulary's size and must not allocate after warm-up.
    fn draft(&mut self, sequence: &Sequence, max: usize, drafts: &mut Vec<u32>);
}
