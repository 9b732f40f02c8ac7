//! What the sampling kernels read: parameters and lists of slots, the rows of a step, tokens that
//! begin a slot's counts. And what they wrote, as the step's output.
//!
//! Pure functions from a [`Batch`] into vectors that keep their memory: nothing is allocated after
//! the first steps. Whoever runs steps copies the vectors to buffers of the sizes in [`Room`].
//!
//! Row of counts and place of lists are fixed by the slot, so taking a slot over moves no other's.

use crate::batch::Batch;
use crate::cuda::sample::{
    LogitsRow, NONE, SampledRow, SlotParams, SlotTokens, TopToken, VOCAB_MAX, padded, parts_of,
};
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::{self, Purpose, SampleOutput, SamplerParams, SlotInit};

/// Tokens of one list of a sequence: as many as a request may name, and a model's own that end it.
const LIST_MAX: usize = 1024 + 64;

/// Words for the lists of a slot: suppressed tokens, pairs of token and bias, allowed tokens.
const LIST_WORDS: usize = 4 * LIST_MAX;

/// Bytes of each buffer that the kernels are given, for any step within limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// R rows.
    pub(crate) rows: usize,
    /// A chain for each sequence, and the end of the last.
    pub(crate) chain_start: usize,
    /// [`SlotTable::params`].
    pub(crate) slots: usize,
    /// [`SlotTable::lists`].
    pub(crate) lists: usize,
    /// A row a slot.
    pub(crate) counts: usize,
    /// A row a chain.
    pub(crate) adjusted: usize,
    /// A key for each part of each row.
    pub(crate) bests: usize,
    /// A token a slot.
    pub(crate) last_tokens: usize,
    /// R rows.
    pub(crate) out: usize,
    /// `max_top` for each of R rows.
    pub(crate) top: usize,
    /// A row a slot.
    pub(crate) resets: usize,
    /// [`SlotCounts::tokens`].
    pub(crate) tokens: usize,
    /// [`SlotCounts::slots`].
    pub(crate) slot_tokens: usize,
}

impl Room {
    /// For steps within `limits`.
    pub(crate) fn new(limits: &Limits) -> Result<Self, KernelError> {
        let Limits { max_seqs: seqs, max_logits_rows: rows, vocab, .. } = *limits;
        if vocab == 0 || vocab > VOCAB_MAX {
            return Err(refused(format!("a vocabulary of {vocab} tokens; at most {VOCAB_MAX}")));
        }
        if seqs > u32::MAX as usize / LIST_WORDS {
            return Err(refused(format!("{seqs} sequences; their lists need longer numbers")));
        }
        Ok(Room {
            rows: rows * size_of::<LogitsRow>(),
            chain_start: (seqs + 1) * 4,
            slots: seqs * size_of::<SlotParams>(),
            lists: seqs * LIST_WORDS * 4,
            counts: seqs * padded(vocab) * 4,
            adjusted: seqs * padded(vocab) * 4,
            bests: rows * parts_of(vocab) * 8,
            last_tokens: seqs * 4,
            out: rows * size_of::<SampledRow>(),
            top: rows * max_top(limits) * size_of::<TopToken>(),
            resets: seqs * 4,
            tokens: limits.max_model_len * 4,
            slot_tokens: seqs * size_of::<SlotTokens>(),
        })
    }
}

/// Entries of the top list of a row.
pub(crate) fn max_top(limits: &Limits) -> usize {
    limits.max_top.min(limits.vocab)
}

/// Parameters and lists of all slots.
#[derive(Debug)]
pub(crate) struct SlotTable {
    /// By slot.
    pub(crate) params: Vec<SlotParams>,
    /// [`LIST_WORDS`] a slot.
    pub(crate) lists: Vec<u32>,
    max_top: u32,
}

impl SlotTable {
    /// For as many slots as `limits` allow.
    pub(crate) fn new(limits: &Limits) -> Self {
        SlotTable {
            params: vec![SlotParams::default(); limits.max_seqs],
            lists: vec![0; limits.max_seqs * LIST_WORDS],
            max_top: max_top(limits) as u32,
        }
    }

    /// Whether the lists of `params` fit a slot.
    pub(crate) fn fits(params: &SamplerParams) -> bool {
        let SamplerParams { suppressed, logit_bias, allowed, .. } = params;
        suppressed.len() + 2 * logit_bias.len() + allowed.len() <= LIST_WORDS
    }

    /// The sequence of `init` takes its slot. Refused if its lists do not fit.
    pub(crate) fn take(&mut self, init: &SlotInit) -> Result<(), KernelError> {
        let (slot, params) = (init.slot as usize, &*init.params);
        if !SlotTable::fits(params) {
            return Err(refused(format!("lists of more than {LIST_WORDS} words")));
        }
        let start = slot * LIST_WORDS;
        let SamplerParams { suppressed, logit_bias, allowed, .. } = params;
        let bias_start = start + suppressed.len();
        let allowed_start = bias_start + 2 * logit_bias.len();
        let bias = logit_bias.iter().flat_map(|&(token, bias)| [token, bias.to_bits()]);
        let words = suppressed.iter().copied().chain(bias).chain(allowed.iter().copied());
        self.lists[start..].iter_mut().zip(words).for_each(|(to, word)| *to = word);
        self.params[slot] = SlotParams {
            seed: params.seed,
            choice: params.choice,
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            repetition_penalty: params.repetition_penalty,
            min_tokens: params.min_tokens,
            num_logprobs: params.num_logprobs.map_or(NONE, |wanted| wanted.min(self.max_top)),
            counts_row: if params.needs_token_counts() { init.slot } else { NONE },
            suppressed_start: start as u32,
            suppressed_len: suppressed.len() as u32,
            bias_start: bias_start as u32,
            bias_len: logit_bias.len() as u32,
            allowed_start: allowed_start as u32,
            allowed_len: allowed.len() as u32,
            unused: 0,
        };
        Ok(())
    }

    /// Where the lists of `slot` begin, and its words.
    pub(crate) fn lists_of(&self, slot: u32) -> (usize, &[u32]) {
        let start = slot as usize * LIST_WORDS;
        let params = &self.params[slot as usize];
        (start, &self.lists[start..(params.allowed_start + params.allowed_len) as usize])
    }
}

/// The logits rows of a step.
#[derive(Debug, Default)]
pub(crate) struct StepRows {
    /// R rows, and padding.
    pub(crate) rows: Vec<LogitsRow>,
    /// First row of each sequence that has any; then their end, once and for each chain of padding.
    pub(crate) chain_start: Vec<u32>,
    /// Whether any row asks for log-probabilities.
    pub(crate) is_described: bool,
}

impl StepRows {
    /// For steps within `limits`.
    pub(crate) fn new(limits: &Limits) -> Self {
        StepRows {
            rows: Vec::with_capacity(limits.max_logits_rows),
            chain_start: Vec::with_capacity(limits.max_seqs + 1),
            is_described: false,
        }
    }

    /// Takes the rows of `batch`, whose slots `table` holds.
    pub(crate) fn fill(&mut self, batch: &Batch, table: &SlotTable) {
        self.rows.clear();
        self.chain_start.clear();
        self.is_described = false;
        let mut last_seq = None;
        for row in &batch.logits {
            if last_seq != Some(row.seq) {
                self.chain_start.push(self.rows.len() as u32);
                last_seq = Some(row.seq);
            }
            let slot = batch.seq_slot[row.seq as usize];
            let is_prompt = matches!(row.purpose, Purpose::PromptLogprob { .. });
            self.is_described |= is_prompt || table.params[slot as usize].num_logprobs != NONE;
            let (kind, position_or_target, draft_or_top) = match row.purpose {
                Purpose::Sample { output_position } => (0, output_position, 0),
                Purpose::PromptLogprob { target, num_top } => (1, target, num_top),
                Purpose::Verify { output_position, draft } => (2, output_position, draft),
            };
            self.rows.push(LogitsRow { kind, slot, position_or_target, draft_or_top });
        }
        self.chain_start.push(self.rows.len() as u32);
    }

    /// Sequences that have rows, and padding.
    pub(crate) fn num_chains(&self) -> usize {
        self.chain_start.len() - 1
    }
}

/// Tokens of sequences that come with penalties, as many as a buffer holds at a time.
#[derive(Debug)]
pub(crate) struct SlotCounts {
    /// Rows of counts to clear, those of all sequences.
    pub(crate) resets: Vec<u32>,
    /// Prompt and output of each sequence of a round.
    pub(crate) tokens: Vec<u32>,
    /// The sequences of a round.
    pub(crate) slots: Vec<SlotTokens>,
    max_model_len: usize,
}

impl SlotCounts {
    /// For steps within `limits`.
    pub(crate) fn new(limits: &Limits) -> Self {
        SlotCounts {
            resets: Vec::with_capacity(limits.max_seqs),
            tokens: Vec::with_capacity(limits.max_model_len),
            slots: Vec::with_capacity(limits.max_seqs),
            max_model_len: limits.max_model_len,
        }
    }

    /// Takes the rows of counts that `inits` need.
    pub(crate) fn fill_resets(&mut self, inits: &[SlotInit]) {
        let counted = inits.iter().filter(|init| init.params.needs_token_counts());
        self.resets.clear();
        self.resets.extend(counted.map(|init| init.slot));
    }

    /// Takes the tokens of `inits` from `first` on, until no more fit. Gives where the next round
    /// begins: there is none at the end of `inits`.
    pub(crate) fn fill_round(&mut self, inits: &[SlotInit], first: usize) -> usize {
        self.tokens.clear();
        self.slots.clear();
        for (index, init) in inits.iter().enumerate().skip(first) {
            if !init.params.needs_token_counts() {
                continue;
            }
            // More than a sequence may hold is a breach of contract and left out.
            let prompt = &init.prompt[..init.prompt.len().min(self.max_model_len)];
            let output_max = self.max_model_len - prompt.len();
            let output = &init.output[..init.output.len().min(output_max)];
            if self.tokens.len() + prompt.len() + output.len() > self.max_model_len {
                return index;
            }
            self.slots.push(SlotTokens {
                counts_row: init.slot,
                start: self.tokens.len() as u32,
                prompt_len: prompt.len() as u32,
                output_len: output.len() as u32,
            });
            self.tokens.extend_from_slice(prompt);
            self.tokens.extend_from_slice(output);
        }
        inits.len()
    }
}

/// Joins what the kernels wrote for the rows of a step: top lists lie one after another.
pub(crate) fn collect(
    rows: &[SampledRow],
    top: &[TopToken],
    limits: &Limits,
    output: &mut SampleOutput,
) {
    let max_top = max_top(limits);
    output.rows.clear();
    output.top.clear();
    // The largest step's room at once: later steps never allocate.
    output.rows.reserve(limits.max_logits_rows);
    output.top.reserve(limits.max_logits_rows * max_top);
    for (index, row) in rows.iter().enumerate() {
        let SampledRow { token, logprob, rank, top_len } = *row;
        let top_start = output.top.len() as u32;
        output.rows.push(sampling::SampledRow { token, logprob, rank, top_start, top_len });
        let list = &top[index * max_top..][..top_len as usize];
        output.top.extend(list.iter().map(|entry| (entry.token, entry.logprob)));
    }
}

fn refused(reason: String) -> KernelError {
    KernelError::Shape { op: "sample", reason }
}
