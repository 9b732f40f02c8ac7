//! Requests straight to the engine, without the network: a set of them, and when their tokens came.

use std::time::{Duration, Instant};

use anyhow::Result;
use pagoda_engine::handle::{EngineHandle, EventStream};
use pagoda_engine::request::{
    Event, Request, SamplerParams, Segment, StepError, StopParams, Tenant,
};

/// What a set of requests that arrive together took.
pub struct Outcome {
    /// From the first submission to the last end.
    pub elapsed: Duration,
    /// When each request had its first token.
    pub first_tokens_s: Vec<f64>,
    /// When each token came.
    pub tokens_s: Vec<f64>,
}

impl Outcome {
    /// When the last of the requests had its first token.
    pub fn last_first_s(&self) -> f64 {
        self.first_tokens_s.iter().copied().fold(0.0, f64::max)
    }

    /// Tokens/s while all of them decoded.
    pub fn decode_rate(&self) -> f64 {
        let from = self.last_first_s();
        let tokens = self.tokens_s.iter().filter(|time| **time > from).count() as f64;
        tokens / (self.elapsed.as_secs_f64() - from)
    }
}

/// Submits all requests and reads them to their end.
pub fn run(handle: &EngineHandle, requests: Vec<Request>) -> Result<Outcome> {
    let began = Instant::now();
    let mut streams: Vec<(EventStream, bool)> = requests
        .into_iter()
        .map(|request| Ok((handle.submit(request)?, false)))
        .collect::<Result<_>>()?;
    let mut outcome =
        Outcome { elapsed: Duration::ZERO, first_tokens_s: Vec::new(), tokens_s: Vec::new() };
    while !streams.is_empty() {
        let now = began.elapsed().as_secs_f64();
        let mut ended = Vec::new();
        for (index, (stream, has_first)) in streams.iter_mut().enumerate() {
            while let Some(event) = stream.try_next() {
                match event {
                    Event::Token { .. } => {
                        if !std::mem::replace(has_first, true) {
                            outcome.first_tokens_s.push(now);
                        }
                        outcome.tokens_s.push(now);
                    }
                    Event::Finished { .. } => ended.push(index),
                    Event::Failed(error) => return Err(failed(error)),
                    Event::Started { .. } | Event::Prompt { .. } => {}
                }
            }
        }
        for index in ended.into_iter().rev() {
            streams.swap_remove(index);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    outcome.elapsed = began.elapsed();
    Ok(outcome)
}

fn failed(error: StepError) -> anyhow::Error {
    anyhow::Error::new(error).context("a request failed")
}

/// A greedy request whose prompt nobody shares.
pub fn request(seed: usize, prompt: usize, max_tokens: u32) -> Request {
    let token = |index: usize| ((seed * 7919 + index * 104_729 + 13) % 151_000) as u32;
    Request {
        id: format!("bench {seed}").into(),
        input: vec![Segment::Tokens((0..prompt).map(token).collect())],
        sampler: SamplerParams::default(),
        stop: StopParams {
            max_tokens,
            min_tokens: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
        },
        n: 1,
        prompt_logprobs: None,
        tenant: Tenant { id: "bench".into(), cache_salt: format!("{seed}").into() },
        priority: 0,
    }
}

/// Token ids.
pub type Prompt = Vec<u32>;

/// Greedy answers to `prompts`, asked together: the tokens of each.
pub fn answers(
    handle: &EngineHandle,
    prompts: &[Prompt],
    max_tokens: u32,
) -> Result<Vec<Vec<u32>>> {
    let ends = handle.info().eos_token_ids.clone();
    let asked = |prompt: &Prompt| {
        let mut request = request(0, 0, max_tokens);
        request.input = vec![Segment::Tokens(prompt.clone())];
        request.stop.eos_token_ids.clone_from(&ends);
        Ok(handle.submit(request)?)
    };
    let streams = prompts.iter().map(asked).collect::<Result<Vec<EventStream>>>()?;
    streams.into_iter().map(read_tokens).collect()
}

/// Reads an answer to its end.
fn read_tokens(mut stream: EventStream) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    loop {
        match stream.try_next() {
            Some(Event::Token { token, .. }) => tokens.push(token.id),
            Some(Event::Finished { .. }) => return Ok(tokens),
            Some(Event::Failed(error)) => return Err(failed(error)),
            Some(Event::Started { .. } | Event::Prompt { .. }) => {}
            None => std::thread::sleep(Duration::from_micros(300)),
        }
    }
}
