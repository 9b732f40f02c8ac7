//! What the sampling kernels read: parameters and lists of slots, tokens that begin a slot's counts,
//! the rows of a step. And what they wrote, as the step's output.
//!
//! Pure functions from a [`Batch`] into vectors that keep their memory: nothing is allocated after
//! the first steps. Whoever runs steps brings the vectors to the device.
//!
//! Row of counts and place of lists are fixed by the slot, so taking a slot over moves no other's.

use crate::batch::Batch;
use crate::cuda::graphs::StepShape;
use crate::cuda::sample::{
    LogitsRow, NONE, SampledRow, SlotParams, SlotTake, SlotTokens, TopToken, VOCAB_MAX, padded,
    parts_of,
};
use crate::device::Limits;
use crate::error::KernelError;
use crate::sampling::{self, Purpose, SampleOutput, SamplerParams, SlotInit};

/// Tokens of one list of a sequence: as many as a request may name, and a model's own that end it.
const LIST_MAX: usize = 1024 + 64;

/// Words for the lists of a slot: suppressed tokens, pairs of token and bias, allowed tokens.
const LIST_WORDS: usize = 4 * LIST_MAX;

/// Slots of the longest lists that may be taken together; of usual ones, hundreds.
const LONGEST_TOGETHER: usize = 8;

/// Bytes of each buffer that the kernels keep, for any step within limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// By slot.
    pub(crate) slots: usize,
    /// [`LIST_WORDS`] a slot.
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
            slots: seqs * size_of::<SlotParams>(),
            lists: seqs * LIST_WORDS * 4,
            counts: seqs * padded(vocab) * 4,
            adjusted: seqs * padded(vocab) * 4,
            bests: rows * parts_of(vocab) * 8,
            last_tokens: seqs * 4,
            out: rows * size_of::<SampledRow>(),
            top: rows * max_top(limits) * size_of::<TopToken>(),
        })
    }
}

/// Entries of the top list of a row.
pub(crate) fn max_top(limits: &Limits) -> usize {
    limits.max_top.min(limits.vocab)
}

/// Parameters of all slots, as the steps that were planned leave them.
#[derive(Debug)]
pub(crate) struct SlotTable {
    /// By slot.
    pub(crate) params: Vec<SlotParams>,
    max_top: u32,
}

impl SlotTable {
    /// For as many slots as `limits` allow.
    pub(crate) fn new(limits: &Limits) -> Self {
        let params = vec![SlotParams::default(); limits.max_seqs];
        SlotTable { params, max_top: max_top(limits) as u32 }
    }

    /// The sequence of `init` takes its slot. Refused if its lists do not fit.
    pub(crate) fn take(&mut self, init: &SlotInit) -> Result<(), KernelError> {
        let (slot, params) = (init.slot as usize, &*init.params);
        if num_words(params) > LIST_WORDS {
            return Err(refused(format!("lists of more than {LIST_WORDS} words")));
        }
        let start = slot * LIST_WORDS;
        let SamplerParams { suppressed, logit_bias, allowed, .. } = params;
        let bias_start = start + suppressed.len();
        let allowed_start = bias_start + 2 * logit_bias.len();
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
}

/// Words of a sequence's lists.
fn num_words(params: &SamplerParams) -> usize {
    params.suppressed.len() + 2 * params.logit_bias.len() + params.allowed.len()
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

    /// Appends rows and chains of padding, up to those of `shape`.
    pub(crate) fn pad(&mut self, shape: StepShape) {
        let end = self.rows.len() as u32;
        self.rows.resize(shape.logits, LogitsRow::PADDING);
        self.chain_start.resize(shape.chains + 1, end);
    }
}

/// Sequences that take their slots together: as many as there is room for at a time.
#[derive(Debug)]
pub(crate) struct SlotRound {
    /// The sequences.
    pub(crate) takes: Vec<SlotTake>,
    /// The parameters of each.
    pub(crate) params: Vec<SlotParams>,
    /// The lists of each.
    pub(crate) words: Vec<u32>,
    /// Rows of counts to clear: of sequences with penalties.
    pub(crate) resets: Vec<u32>,
    /// Prompt and output of those.
    pub(crate) tokens: Vec<u32>,
    /// Where they lie.
    pub(crate) counted: Vec<SlotTokens>,
    max_words: usize,
    max_model_len: usize,
}

impl SlotRound {
    /// For steps within `limits`.
    pub(crate) fn new(limits: &Limits) -> Self {
        let Limits { max_seqs, max_model_len, .. } = *limits;
        let max_words = max_seqs.clamp(1, LONGEST_TOGETHER) * LIST_WORDS;
        SlotRound {
            takes: Vec::with_capacity(max_seqs),
            params: Vec::with_capacity(max_seqs),
            words: Vec::with_capacity(max_words),
            resets: Vec::with_capacity(max_seqs),
            tokens: Vec::with_capacity(max_model_len),
            counted: Vec::with_capacity(max_seqs),
            max_words,
            max_model_len,
        }
    }

    /// Words of all lists of a round, at most.
    pub(crate) fn max_words(&self) -> usize {
        self.max_words
    }

    /// Takes sequences from `first` on, which `table` has taken, until no more fit. Gives where the
    /// next round begins: there is none at the end of `inits`.
    pub(crate) fn fill(&mut self, inits: &[SlotInit], first: usize, table: &SlotTable) -> usize {
        self.takes.clear();
        self.params.clear();
        self.words.clear();
        self.resets.clear();
        self.tokens.clear();
        self.counted.clear();
        for (index, init) in inits.iter().enumerate().skip(first) {
            let is_counted = init.params.needs_token_counts();
            // More than a sequence may hold is a breach of contract and left out.
            let prompt = &init.prompt[..init.prompt.len().min(self.max_model_len)];
            let output_max = self.max_model_len - prompt.len();
            let output = &init.output[..init.output.len().min(output_max)];
            let num_tokens = if is_counted { prompt.len() + output.len() } else { 0 };
            if self.words.len() + num_words(&init.params) > self.max_words
                || self.tokens.len() + num_tokens > self.max_model_len
            {
                return index;
            }
            self.push(init, table);
            if is_counted {
                self.resets.push(init.slot);
                self.counted.push(SlotTokens {
                    counts_row: init.slot,
                    start: self.tokens.len() as u32,
                    prompt_len: prompt.len() as u32,
                    output_len: output.len() as u32,
                });
                self.tokens.extend_from_slice(prompt);
                self.tokens.extend_from_slice(output);
            }
        }
        inits.len()
    }

    /// Parameters and lists.
    fn push(&mut self, init: &SlotInit, table: &SlotTable) {
        let SamplerParams { suppressed, logit_bias, allowed, .. } = &*init.params;
        let (start, len) = (self.words.len() as u32, num_words(&init.params) as u32);
        self.takes.push(SlotTake { slot: init.slot, start, len, unused: 0 });
        self.params.push(table.params[init.slot as usize]);
        self.words.extend_from_slice(suppressed);
        self.words.extend(logit_bias.iter().flat_map(|&(token, bias)| [token, bias.to_bits()]));
        self.words.extend_from_slice(allowed);
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
