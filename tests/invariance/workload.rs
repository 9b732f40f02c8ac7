//! The mixed requests of the invariance test, and what an answer is: bits.

use std::sync::Arc;

use pagoda_engine::request::{
    Event, Request as EngineRequest, SamplerParams, Segment, StopParams, Tenant, TokenOut,
};

/// Token ids below this are in every checkpoint's vocabulary.
const MIN_VOCAB: u32 = 300;

/// One request of the test.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampler: SamplerParams,
    pub(crate) max_tokens: u32,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) salt: Arc<str>,
    pub(crate) priority: i32,
}

/// What a request gave: tokens with the bits of their log-probabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) prompt: Vec<Line>,
    pub(crate) tokens: Vec<Line>,
    pub(crate) cached_tokens: u32,
}

/// A token, its log-probability's bits, and its top list's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) id: u32,
    logprob: u32,
    rank: u32,
    top: Vec<(u32, u32)>,
}

impl From<TokenOut> for Line {
    fn from(token: TokenOut) -> Self {
        let top = token.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect();
        Line { id: token.id, logprob: token.logprob.to_bits(), rank: token.rank, top }
    }
}

impl Outcome {
    /// Adds an event; gives whether the request has ended.
    pub(crate) fn push(&mut self, event: Event) -> bool {
        match event {
            Event::Started { cached_tokens, .. } => self.cached_tokens = cached_tokens,
            Event::Prompt { token, .. } => self.prompt.push(token.into()),
            Event::Token { token, .. } => self.tokens.push(token.into()),
            Event::Finished { .. } => return true,
            Event::Failed(error) => panic!("a request failed: {error}"),
        }
        false
    }

    /// Fails at the first token whose bits differ.
    pub(crate) fn assert_bits_equal(&self, alone: &Outcome, name: &str) {
        assert_eq!(self.prompt.len(), alone.prompt.len(), "{name}: prompt rows");
        assert_eq!(self.tokens.len(), alone.tokens.len(), "{name}: tokens");
        let pairs =
            self.prompt.iter().zip(&alone.prompt).chain(self.tokens.iter().zip(&alone.tokens));
        for (index, (crowd, alone)) in pairs.enumerate() {
            assert_eq!(crowd, alone, "{name}: token {index} of {}", self.tokens.len());
        }
    }
}

impl Request {
    /// As the engine takes it.
    pub(crate) fn to_engine(&self) -> EngineRequest {
        EngineRequest {
            id: self.name.as_str().into(),
            input: vec![Segment::Tokens(self.prompt.clone())],
            sampler: self.sampler.clone(),
            stop: StopParams {
                max_tokens: self.max_tokens,
                min_tokens: 0,
                eos_token_ids: Vec::new(),
                stop_token_ids: Vec::new(),
            },
            n: 1,
            prompt_logprobs: self.prompt_logprobs,
            tenant: Tenant { id: "crowd".into(), cache_salt: self.salt.clone() },
            priority: self.priority,
        }
    }
}

/// How much of the test runs, and what must have happened in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Conversations of two turns.
    conversations: usize,
    /// Clients that leave.
    pub(crate) leavers: usize,
    /// Sizes of the last chunk of a prompt.
    pub(crate) chunk_sizes: &'static [usize],
    /// Preemptions, and hits on blocks that decode wrote.
    pub(crate) least: u32,
    /// Clients that left in prefill, and in decode.
    pub(crate) least_left: usize,
}

impl Scale {
    /// 64 requests, every chunk size.
    pub(crate) const FULL: Scale = Scale {
        conversations: 32,
        leavers: 12,
        chunk_sizes: &all_sizes(),
        least: 50,
        least_left: 3,
    };
    /// For arithmetic that is slow: each kind of sampling, and both sides of every tile's border.
    pub(crate) const PART: Scale = Scale {
        conversations: 9,
        leavers: 4,
        chunk_sizes: &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 97,
        ],
        least: 5,
        least_left: 1,
    };
}

const fn all_sizes() -> [usize; 97] {
    let mut sizes = [0; 97];
    let mut index = 0;
    while index < 97 {
        sizes[index] = index + 1;
        index += 1;
    }
    sizes
}

/// Conversations that begin: different lengths, shared beginnings, every way to sample.
pub(crate) fn first_turns(vocab: u32, scale: &Scale) -> Vec<Request> {
    (0..scale.conversations)
        .map(|index| {
            let mut prompt = tokens(1000 + index as u64 % 4, 20, vocab);
            prompt.extend(tokens(index as u64, 3 + (index * 37) % 90, vocab));
            Request {
                name: format!("first {index}"),
                prompt,
                sampler: sampler(index, vocab),
                max_tokens: 150 + (index as u32 * 7) % 100,
                prompt_logprobs: (index % 5 == 0).then_some(3),
                salt: "".into(),
                priority: 0,
            }
        })
        .collect()
}

/// The same conversation goes on: its prompt holds what decode wrote.
pub(crate) fn second_turn(index: usize, first: &Request, outcome: &Outcome) -> Request {
    let mut prompt = first.prompt.clone();
    prompt.extend(outcome.tokens.iter().map(|line| line.id));
    prompt.extend(tokens(5000 + index as u64, 1 + index % 19, MIN_VOCAB));
    Request {
        name: format!("second {index}"),
        prompt,
        sampler: sampler(index + 3, MIN_VOCAB),
        max_tokens: 60 + (index as u32 * 5) % 50,
        prompt_logprobs: None,
        salt: "".into(),
        priority: -1,
    }
}

/// Prompts of 98 to 194 tokens that nobody shares: in steps of 97 rows their second chunks have
/// every size of the scale.
pub(crate) fn chunk_sweep(vocab: u32, scale: &Scale) -> Vec<Request> {
    let sizes = scale.chunk_sizes.iter();
    sizes
        .map(|&size| Request {
            name: format!("chunk {size}"),
            prompt: tokens(9000 + size as u64, 97 + size, vocab),
            sampler: SamplerParams { num_logprobs: Some(20), ..SamplerParams::default() },
            max_tokens: 3,
            prompt_logprobs: None,
            salt: format!("sweep {size}").into(),
            priority: 0,
        })
        .collect()
}

/// Every way to sample in turn; always with log-probabilities.
fn sampler(index: usize, vocab: u32) -> SamplerParams {
    let seeded = SamplerParams {
        temperature: 0.9,
        seed: 77 + index as u64,
        num_logprobs: Some((index % 6) as u32),
        ..SamplerParams::default()
    };
    match index % 8 {
        0 => SamplerParams { temperature: 0.0, ..seeded },
        1 => seeded,
        2 => SamplerParams { top_p: 0.8, ..seeded },
        3 => SamplerParams { top_k: 12, ..seeded },
        4 => SamplerParams { min_p: 0.05, top_p: 0.95, ..seeded },
        5 => SamplerParams { repetition_penalty: 1.3, frequency_penalty: 0.2, ..seeded },
        6 => SamplerParams { logit_bias: vec![(3, 4.0), (9, -5.0)], ..seeded },
        _ => SamplerParams { allowed: (0..vocab.min(200)).step_by(2).collect(), ..seeded },
    }
}

/// Random token ids below `vocab` (a splitmix generator: the same everywhere).
pub(crate) fn tokens(seed: u64, len: usize, vocab: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % u64::from(vocab)) as u32
        })
        .collect()
}
