//! Settings and requests made from a seed, and how to make a failing workload smaller.

use std::sync::Arc;
use std::time::Duration;

use pagoda_engine::model::info::{InstanceInfo, KvGroupInfo, KvGroupKind};
use pagoda_engine::request::{Request, SamplerParams, Segment, StopParams, Tenant};
use pagoda_engine::scheduler::settings::SchedulerSettings;
use pagoda_kernels::dtype::DType;

use super::closed_form::{Answer, Question, Random, answer};

/// One simulation: an instance and what happens to it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where it came from.
    pub seed: u64,
    /// The instance.
    pub info: InstanceInfo,
    /// The scheduler.
    pub settings: SchedulerSettings,
    /// Whether drafts are proposed.
    pub drafts: bool,
    /// Whether decode writes other K and V than prefill.
    pub decode_differs: bool,
    /// Requests in the order of their turns.
    pub asks: Vec<Ask>,
}

/// One request and what its reader does.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Turn of the loop before which it is submitted.
    pub turn: u32,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens at most.
    pub max_tokens: u32,
    /// Tokens before which nothing ends it.
    pub min_tokens: u32,
    /// Choices.
    pub n: u32,
    /// Tenant, also its salt.
    pub tenant: u32,
    /// Smaller is served first.
    pub priority: i32,
    /// Prompt log-probabilities.
    pub prompt_logprobs: Option<u32>,
    /// Whether the sampler needs the tokens so far.
    pub counts: bool,
    /// When the reader leaves, if it does before the end.
    pub leaves: Option<Leaves>,
    /// The choice of which the reader wants no more, once it has seen so many tokens of it.
    pub stops: Option<(u32, usize)>,
    /// The reader looks once in so many turns.
    pub reads_every: u32,
}

/// When a reader leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// So many turns after it came.
    AfterTurns(u32),
    /// Once it has seen more events than this.
    AfterEvents(usize),
    /// Once a row of its prompt was computed.
    InPrefill,
}

/// Tokens that end a choice: end of sequence and a stop token.
pub const ENDS: [u32; 2] = [0, 1];

/// Tokens in the vocabulary.
pub const VOCAB: u32 = 61;

/// An instance of two groups for simulations.
pub fn instance(depth: u32, block_size: u32, full: u32, window: (u32, u32)) -> InstanceInfo {
    let group = |kind, num_blocks| KvGroupInfo {
        kind,
        num_layers: 1,
        num_blocks,
        bytes_per_block: 8 * u64::from(block_size),
    };
    InstanceInfo {
        max_model_len: 100_000,
        vocab: VOCAB,
        block_size,
        groups: vec![
            group(KvGroupKind::Full, full),
            group(KvGroupKind::Window(window.0), window.1),
        ],
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_logits_rows: 32,
        max_logprobs: 5,
        numerics: "hash".into(),
        eos_token_ids: vec![ENDS[0]],
        default_sampling: Default::default(),
        dtype: DType::F32,
        quantization: None,
        kv_dtype: DType::F32.into(),
        weight_bytes: 0,
        depth,
        device: "simulation".into(),
    }
}

impl Workload {
    /// Makes a workload of `num_asks` requests from `seed`.
    pub fn from_seed(seed: u64, num_asks: u32) -> Self {
        let mut random = Random::new(seed);
        let block_size = random.pick(&[16, 16, 32, 64]);
        let window = random.pick(&[1, 7, 17, 40, 100]);
        let depth = 1 + seed as u32 % 2;
        // Pools from "a few sequences" to "hardly one": most are tight.
        let full = 192 / block_size + random.below(400 / block_size);
        let window_blocks = (window / block_size + 4) + random.below(256 / block_size);
        let mut info = instance(depth, block_size, full, (window, window_blocks));
        info.max_num_seqs = 2 + random.below(10);
        let chunk = random.pick(&[3, 8, 97, 120]);
        info.max_num_batched_tokens = info.max_num_seqs + random.below(chunk);
        info.max_logits_rows = info.max_num_seqs + random.below(20);
        let settings = SchedulerSettings {
            max_queued_requests: 24,
            max_queued_tokens: 4_000,
            max_choices: 4,
            max_step: random.percent(50).then(|| Duration::from_micros(300)),
            prefix_cache: random.percent(92),
            ..SchedulerSettings::default()
        };
        let drafts = random.percent(50);
        let prefixes: Vec<Vec<u32>> = (0..3).map(|_| tokens(&mut random, 150)).collect();
        let busy = random.pick(&[4, 12, 30]);
        let mut turn = 0;
        let asks = (0..num_asks)
            .map(|_| {
                turn += if random.percent(50) { 0 } else { random.below(busy) };
                ask(&mut random, turn, &prefixes)
            })
            .collect();
        let decode_differs = random.percent(30);
        Workload { seed, info, settings, drafts, decode_differs, asks }
    }

    /// The outcome of every choice of every request, computed without the engine.
    pub fn answers(&self) -> Vec<Vec<Answer>> {
        let groups: Vec<KvGroupKind> = self.info.groups.iter().map(|group| group.kind).collect();
        let of_choice = |ask: &Ask, choice| {
            answer(&Question {
                groups: &groups,
                vocab: self.info.vocab,
                prompt: &ask.prompt,
                salt: u64::from(ask.tenant),
                decode_differs: self.decode_differs,
                choice,
                max_tokens: ask.max_tokens,
                min_tokens: ask.min_tokens,
                ends: &ENDS,
            })
        };
        self.asks.iter().map(|ask| (0..ask.n).map(|c| of_choice(ask, c)).collect()).collect()
    }

    /// The smallest workload found that still `fails`: drops halves, quarters, … of the requests,
    /// then single ones, then what single requests do.
    pub fn shrink(&self, fails: impl Fn(&Workload) -> bool) -> Workload {
        let mut best = self.clone();
        let mut size = best.asks.len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < best.asks.len() {
                let mut smaller = best.clone();
                smaller.asks.drain(start..(start + size).min(best.asks.len()));
                if !smaller.asks.is_empty() && fails(&smaller) {
                    best = smaller;
                } else {
                    start += size;
                }
            }
            size /= 2;
        }
        for index in 0..best.asks.len() {
            for simplify in SIMPLER {
                let mut simpler = best.clone();
                simplify(&mut simpler.asks[index]);
                if fails(&simpler) {
                    best = simpler;
                }
            }
        }
        best
    }
}

/// What may be left out of a request.
const SIMPLER: [fn(&mut Ask); 6] = [
    |ask| ask.n = 1,
    |ask| ask.leaves = None,
    |ask| ask.prompt_logprobs = None,
    |ask| ask.priority = 0,
    |ask| ask.max_tokens = ask.max_tokens.min(2),
    |ask| ask.prompt.truncate(ask.prompt.len().div_ceil(2)),
];

impl Ask {
    /// The request as a client would send it. `number` tells the runner which one it is;
    /// `salted` is false to plant the fault of unsalted keys.
    pub fn request(&self, number: u32, salted: bool) -> Request {
        Request {
            id: format!("request-{number}").into(),
            input: vec![Segment::Tokens(self.prompt.clone())],
            sampler: SamplerParams {
                // The pretended model takes the salt from the seed, so that content depends on it.
                seed: u64::from(self.tenant),
                logit_bias: vec![(number, 0.0)],
                num_logprobs: number.is_multiple_of(2).then_some(2),
                frequency_penalty: if self.counts { 0.5 } else { 0.0 },
                ..SamplerParams::default()
            },
            stop: StopParams {
                max_tokens: self.max_tokens,
                min_tokens: self.min_tokens,
                eos_token_ids: vec![ENDS[0]],
                stop_token_ids: vec![ENDS[1]],
            },
            n: self.n,
            prompt_logprobs: self.prompt_logprobs,
            tenant: Tenant {
                id: Arc::from(format!("tenant-{}", self.tenant)),
                cache_salt: Arc::from(if salted { self.tenant.to_string() } else { String::new() }),
            },
            priority: self.priority,
        }
    }
}

fn tokens(random: &mut Random, len: u32) -> Vec<u32> {
    (0..len).map(|_| random.below(VOCAB)).collect()
}

fn ask(random: &mut Random, turn: u32, prefixes: &[Vec<u32>]) -> Ask {
    let shared = random.below(prefixes.len() as u32) as usize;
    let mut prompt = Vec::new();
    if random.percent(70) {
        let len = random.pick(&[16, 31, 32, 64, 96, 128, 150]);
        prompt.extend_from_slice(&prefixes[shared][..len]);
    }
    let own = random.pick(&[1, 2, 5, 17, 40]);
    let own = random.below(own) + u32::from(prompt.is_empty());
    prompt.extend(tokens(random, own));
    let prompt_logprobs = random.percent(10).then(|| random.below(3));
    let patience = random.pick(&[6, 20, 60]);
    let leaves = Some(match random.below(3) {
        0 => Leaves::AfterTurns(random.below(patience)),
        1 => Leaves::AfterEvents(random.below(30) as usize),
        _ => Leaves::InPrefill,
    });
    let no_output = prompt_logprobs.is_some() && random.percent(30);
    let n = if random.percent(15) { 2 + random.below(2) } else { 1 };
    let stops = random.percent(20).then(|| (random.below(n), random.below(40) as usize));
    Ask {
        turn,
        prompt,
        max_tokens: if no_output { 0 } else { 1 + random.below(100) },
        min_tokens: if random.percent(60) { random.below(90) } else { 0 },
        n,
        tenant: random.below(3),
        priority: if random.percent(20) { random.below(3) as i32 - 1 } else { 0 },
        prompt_logprobs,
        counts: random.percent(20),
        leaves: leaves.filter(|_| random.percent(25)),
        stops,
        reads_every: random.pick(&[1, 1, 1, 7, 1_000_000]),
    }
}
