//! Requests that keep every part of a step busy, for tests that count allocations.
//!
//! Prompts that share a prefix, penalties, log-probabilities, several choices, and lengths that all
//! differ, so that seats change hands at all times.

use pagoda_engine::request::{Request, SamplerParams, Segment, StopParams, Tenant};

/// Request `number` over the token ids `0..vocab`. Never ends by a token.
pub fn request(number: u32, vocab: u32) -> Request {
    let shared = if number.is_multiple_of(2) { 64 } else { 0 };
    let tokens = (0..shared).chain((0..50 + number % 70).map(|i| i * 31 + number));
    let penalties = number.is_multiple_of(2);
    Request {
        id: "r".into(),
        input: vec![Segment::Tokens(tokens.map(|token| token % vocab).collect())],
        sampler: SamplerParams {
            temperature: if number.is_multiple_of(4) { 0.0 } else { 0.8 },
            top_p: if number.is_multiple_of(6) { 0.9 } else { 1.0 },
            top_k: if number.is_multiple_of(9) { 20 } else { 0 },
            seed: u64::from(number),
            frequency_penalty: if penalties { 0.5 } else { 0.0 },
            num_logprobs: number.is_multiple_of(3).then_some(2),
            ..SamplerParams::default()
        },
        stop: StopParams {
            max_tokens: 150 + number % 90,
            min_tokens: 0,
            eos_token_ids: vec![],
            stop_token_ids: vec![],
        },
        n: 1 + u32::from(number.is_multiple_of(10)),
        prompt_logprobs: number.is_multiple_of(7).then_some(1),
        tenant: Tenant {
            id: format!("tenant-{}", number % 3).as_str().into(),
            cache_salt: Default::default(),
        },
        priority: 0,
    }
}
