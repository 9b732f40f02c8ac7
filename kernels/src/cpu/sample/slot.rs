//! What the sampler keeps for each sequence slot: its parameters and, for penalties, its tokens.
//!
//! A slot is set when a sequence takes it ([`SlotInit`]) and counts each token that is sampled.
//! Everything is allocated at start; nothing here allocates in a step.

use std::sync::Arc;

use crate::sampling::{SamplerParams, SlotInit};

/// The sampler's state of one sequence.
pub(crate) struct Slot {
    /// How the sequence samples.
    pub(crate) params: Arc<SamplerParams>,
    /// Its tokens, kept only if [`SamplerParams::needs_token_counts`].
    pub(crate) counts: TokenCounts,
}

impl Slot {
    /// An unused slot whose sequences have at most `max_model_len` tokens.
    pub(crate) fn new(max_model_len: usize, params: Arc<SamplerParams>) -> Slot {
        Slot { params, counts: TokenCounts::new(max_model_len) }
    }

    /// Bytes of a slot for sequences of so many tokens.
    pub(crate) fn bytes(max_model_len: usize) -> usize {
        size_of::<Slot>() + max_model_len * size_of::<TokenCount>()
    }

    /// The sequence of `init` takes the slot.
    pub(crate) fn init(&mut self, init: &SlotInit) {
        self.params = Arc::clone(&init.params);
        self.counts.clear();
        if self.params.needs_token_counts() {
            self.counts.fill(&init.prompt, &init.output);
        }
    }

    /// The sequence gained `token`.
    pub(crate) fn count(&mut self, token: u32) {
        if self.params.needs_token_counts() {
            self.counts.add_generated(token);
        }
    }
}

/// How often each distinct token of a sequence was generated, and whether its prompt has it.
///
/// A sorted list instead of a table over the vocabulary: applying penalties costs the tokens that
/// the sequence holds, and taking a slot over costs nothing for the ones it does not.
pub(crate) struct TokenCounts {
    /// Ascending by token; capacity for a sequence of the longest length without reallocation.
    entries: Vec<TokenCount>,
}

/// One distinct token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenCount {
    /// The token.
    pub(crate) token: u32,
    /// How often it was generated; 0 if only the prompt has it.
    pub(crate) generated: u32,
}

impl TokenCounts {
    fn new(max_model_len: usize) -> TokenCounts {
        // Untouched capacity costs address space, not memory.
        TokenCounts { entries: Vec::with_capacity(max_model_len) }
    }

    /// The distinct tokens, ascending.
    pub(crate) fn entries(&self) -> &[TokenCount] {
        &self.entries
    }

    fn clear(&mut self) {
        self.entries.clear();
    }

    /// Counts `prompt` and `output`; what exceeds the planned length is a breach of contract and
    /// is left out rather than allocated for.
    fn fill(&mut self, prompt: &[u32], output: &[u32]) {
        let room = self.entries.capacity();
        let prompt = prompt.iter().map(|&token| TokenCount { token, generated: 0 });
        let output = output.iter().map(|&token| TokenCount { token, generated: 1 });
        self.entries.extend(prompt.chain(output).take(room));
        self.entries.sort_unstable_by_key(|entry| entry.token);
        self.entries.dedup_by(|next, kept| {
            let same = next.token == kept.token;
            if same {
                kept.generated += next.generated;
            }
            same
        });
    }

    fn add_generated(&mut self, token: u32) {
        match self.entries.binary_search_by_key(&token, |entry| entry.token) {
            Ok(index) => self.entries[index].generated += 1,
            Err(index) if self.entries.len() < self.entries.capacity() => {
                self.entries.insert(index, TokenCount { token, generated: 1 });
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalised() -> Arc<SamplerParams> {
        Arc::new(SamplerParams { presence_penalty: 0.5, ..SamplerParams::default() })
    }

    fn init(params: Arc<SamplerParams>) -> SlotInit {
        SlotInit { slot: 0, params, prompt: vec![7, 3, 7], output: vec![3, 9] }
    }

    #[test]
    fn tokens_are_counted_once_each_and_never_reallocated() {
        let mut slot = Slot::new(8, Arc::default());
        slot.init(&init(penalised()));
        let room = slot.counts.entries.capacity();
        for token in [9, 1, 9, 2, 4, 5, 6, 8, 10, 11, 12] {
            slot.count(token);
        }
        assert_eq!(slot.counts.entries.capacity(), room);
        let counts: Vec<_> =
            slot.counts.entries().iter().map(|e| (e.token, e.generated)).take(6).collect();
        assert_eq!(counts, [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
        assert!(slot.counts.entries().contains(&TokenCount { token: 7, generated: 0 }));
        assert!(slot.counts.entries().contains(&TokenCount { token: 9, generated: 3 }));
    }

    #[test]
    fn counting_as_one_goes_equals_counting_at_once() {
        let mut resumed = Slot::new(16, Arc::default());
        resumed.init(&init(penalised()));
        let mut running = Slot::new(16, Arc::default());
        running.init(&SlotInit { output: Vec::new(), ..init(penalised()) });
        running.count(3);
        running.count(9);
        assert_eq!(running.counts.entries(), resumed.counts.entries());
    }

    #[test]
    fn a_slot_without_penalties_keeps_no_tokens() {
        let mut slot = Slot::new(8, Arc::default());
        slot.init(&init(penalised()));
        slot.init(&init(Arc::default()));
        slot.count(4);
        assert!(slot.counts.entries().is_empty());
    }
}
