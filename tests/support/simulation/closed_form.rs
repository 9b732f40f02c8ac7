//! The model's arithmetic and the outcome of a request computed without the engine.

use pagoda_engine::model::info::KvGroupKind;

/// One step of a 64-bit mixing hash (the finalizer of splitmix64 over a sum).
pub fn mix(state: u64, value: u64) -> u64 {
    let mut z = state.rotate_left(5).wrapping_add(value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What the model stores for a token: depends on nothing but these.
pub fn kv_value(token: u32, position: u32, salt: u64) -> u64 {
    mix(mix(u64::from(token), u64::from(position)), salt) | 1
}

/// What the model stores for a token that decode computes, where that is another value.
pub fn decoded_kv_value(token: u32, position: u32, salt: u64) -> u64 {
    kv_value(token, position, salt ^ 0xdec0de)
}

/// First position that a row at `position` reads in a group.
pub fn first_read(kind: KvGroupKind, position: u32) -> u32 {
    match kind {
        KvGroupKind::Full => 0,
        KvGroupKind::Window(window) => (position + 1).saturating_sub(window),
    }
}

/// The logits of a row, as one number: a hash over groups of the values read, in order.
pub fn digest(groups: impl Iterator<Item = u64>) -> u64 {
    groups.fold(0x51, mix)
}

/// What the sampler draws from a row.
pub fn sample(digest: u64, choice: u32, output_position: u32, vocab: u32) -> u32 {
    let noise = mix(u64::from(choice), u64::from(output_position));
    (mix(digest, noise) % u64::from(vocab)) as u32
}

/// Log-probability of `target` in a row.
pub fn logprob(digest: u64, target: u32) -> f32 {
    -((mix(digest, u64::from(target)) % 1000) as f32) / 100.0
}

/// A request as the closed form sees it.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// KV groups.
    pub groups: &'a [KvGroupKind],
    /// V.
    pub vocab: u32,
    /// The prompt.
    pub prompt: &'a [u32],
    /// Salt of the tenant.
    pub salt: u64,
    /// Whether generated tokens have other K and V than those of a prompt.
    pub decode_differs: bool,
    /// Which choice.
    pub choice: u32,
    /// Tokens at most.
    pub max_tokens: u32,
    /// Tokens before which nothing ends it.
    pub min_tokens: u32,
    /// Tokens that end it.
    pub ends: &'a [u32],
}

/// Log-probabilities of the prompt and the tokens generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Of prompt token i + 1.
    pub prompt_logprobs: Vec<f32>,
    /// Tokens.
    pub tokens: Vec<u32>,
}

/// Answers `question` token by token from the definition.
pub fn answer(question: &Question<'_>) -> Answer {
    let mut values: Vec<u64> = Vec::new();
    let mut tokens = question.prompt.to_vec();
    // The hash of a full group only ever grows at its end.
    let mut full = 0_u64;
    let mut answer = Answer::default();
    let mut position = 0;
    while position < tokens.len() {
        let by_decode = question.decode_differs && position >= question.prompt.len();
        let value_of = if by_decode { decoded_kv_value } else { kv_value };
        let value = value_of(tokens[position], position as u32, question.salt);
        values.push(value);
        full = mix(full, value);
        let of_group = |&kind: &KvGroupKind| match kind {
            KvGroupKind::Full => full,
            window @ KvGroupKind::Window(_) => {
                let first = first_read(window, position as u32) as usize;
                values[first..].iter().fold(0, |hash, &value| mix(hash, value))
            }
        };
        let row = digest(question.groups.iter().map(of_group));
        position += 1;
        if position < question.prompt.len() {
            answer.prompt_logprobs.push(logprob(row, question.prompt[position]));
            continue;
        }
        let num_output = answer.tokens.len() as u32;
        if num_output == question.max_tokens {
            break;
        }
        let token = sample(row, question.choice, num_output, question.vocab);
        answer.tokens.push(token);
        tokens.push(token);
        if num_output >= question.min_tokens && question.ends.contains(&token) {
            break;
        }
    }
    answer
}

/// A seeded sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Random(mix(seed, 0x0a11))
    }

    /// The next number below `end` (which is not 0).
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 = mix(self.0, 1);
        (self.0 % u64::from(end)) as u32
    }

    /// Whether something that happens `percent` times in a hundred happens now.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    /// One of `items`.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u32) as usize]
    }
}
