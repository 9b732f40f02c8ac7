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
    /// When each token of each request came, in seconds.
    pub requests: Vec<Vec<f64>>,
}

impl Outcome {
    /// When each request had its first token.
    pub fn first_tokens_s(&self) -> Vec<f64> {
        self.requests.iter().filter_map(|tokens| tokens.first().copied()).collect()
    }

    /// Seconds from each token of a request to its next.
    pub fn between_tokens_s(&self) -> Vec<f64> {
        let gaps = |tokens: &Vec<f64>| tokens.windows(2).map(|two| two[1] - two[0]).collect();
        self.requests.iter().flat_map::<Vec<f64>, _>(gaps).collect()
    }

    /// When the last of the requests had its first token.
    pub fn last_first_s(&self) -> f64 {
        self.first_tokens_s().into_iter().fold(0.0, f64::max)
    }

    /// Tokens/s while all of them decoded.
    pub fn decode_rate(&self) -> f64 {
        let from = self.last_first_s();
        let tokens = self.requests.iter().flatten().filter(|time| **time > from).count() as f64;
        tokens / (self.elapsed.as_secs_f64() - from)
    }
}

/// How often streams are looked at, unless asked otherwise: seldom enough to leave the cores alone.
const LOOK: Duration = Duration::from_micros(300);

/// Submits all requests and reads them to their end.
pub fn run(handle: &EngineHandle, requests: Vec<Request>) -> Result<Outcome> {
    run_looking(handle, requests, LOOK)
}

/// The same, looking for tokens every so often.
pub fn run_looking(
    handle: &EngineHandle,
    requests: Vec<Request>,
    look: Duration,
) -> Result<Outcome> {
    let began = Instant::now();
    let mut streams: Vec<(usize, EventStream)> = requests
        .into_iter()
        .enumerate()
        .map(|(index, request)| Ok((index, handle.submit(request)?)))
        .collect::<Result<_>>()?;
    let mut tokens = vec![Vec::new(); streams.len()];
    while !streams.is_empty() {
        let now = began.elapsed().as_secs_f64();
        let mut ended = Vec::new();
        for (place, (index, stream)) in streams.iter_mut().enumerate() {
            while let Some(event) = stream.try_next() {
                match event {
                    Event::Token { .. } => tokens[*index].push(now),
                    Event::Finished { .. } => ended.push(place),
                    Event::Failed(error) => return Err(failed(error)),
                    Event::Started { .. } | Event::Prompt { .. } => {}
                }
            }
        }
        for place in ended.into_iter().rev() {
            streams.swap_remove(place);
        }
        std::thread::sleep(look);
    }
    Ok(Outcome { elapsed: began.elapsed(), requests: tokens })
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

/// Answers to `prompts`, asked together: the tokens of each.
pub fn answers(
    handle: &EngineHandle,
    prompts: &[Prompt],
    max_tokens: u32,
    sampler: &SamplerParams,
) -> Result<Vec<Vec<u32>>> {
    let ends = handle.info().eos_token_ids.clone();
    let asked = |prompt: &Prompt| {
        let mut request = request(0, 0, max_tokens);
        request.input = vec![Segment::Tokens(prompt.clone())];
        request.sampler.clone_from(sampler);
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
