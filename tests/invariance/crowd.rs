//! All requests at once in an engine that is too small for them, and clients that leave.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pagoda_engine::handle::EventStream;
use pagoda_engine::request::{Event, SamplerParams};

use crate::engine::Engine;
use crate::workload::{Outcome, Request, Scale, tokens};

const CONVERSATIONS: usize = 12;

/// What happened beside the answers, which were compared on the way.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub(crate) scale: Scale,
    preemptions: u64,
    left_in_prefill: usize,
    left_in_decode: usize,
    decode_block_hits: u32,
    /// Hits that ended within a block.
    tail_hits: u32,
}

/// One client that reads to the end.
struct Reader<'a> {
    request: &'a Request,
    alone: &'a Outcome,
    outcome: Outcome,
    stream: EventStream,
    /// The turn that follows, and the prompt length of this one.
    follow_up: Option<&'a (Request, Outcome)>,
    /// Length of the first turn's prompt, for a second turn.
    first_prompt_len: Option<u32>,
}

impl Crowd {
    /// Nothing has happened yet.
    pub(crate) fn new(scale: Scale) -> Self {
        Crowd {
            scale,
            preemptions: 0,
            left_in_prefill: 0,
            left_in_decode: 0,
            decode_block_hits: 0,
            tail_hits: 0,
        }
    }

    /// Runs all conversations, each second turn as soon as its first has ended.
    pub(crate) fn run(
        &mut self,
        engine: &Engine,
        firsts: &[(Request, Outcome)],
        seconds: &[(Request, Outcome)],
    ) {
        let mut leavers = leaving_prompts(engine.vocab(), self.scale.leavers);
        let mut readers: Vec<Reader<'_>> = firsts
            .iter()
            .zip(seconds)
            .map(|((request, alone), second)| Reader::new(engine, request, alone, Some(second)))
            .collect();
        let mut in_prefill = leavers.pop_front().map(|request| engine.submit(&request));
        let mut in_decode = leavers.pop_front().map(|request| engine.submit(&request));
        let mut deep_before = 0;
        while !readers.is_empty() || in_prefill.is_some() || in_decode.is_some() {
            let mut still = Vec::with_capacity(readers.len());
            for mut reader in readers {
                match reader.poll() {
                    false => still.push(reader),
                    true => still.extend(self.finish(engine, reader)),
                }
            }
            readers = still;
            let deep = engine.seen.deep_prefills.load(Relaxed);
            if deep > deep_before && in_prefill.as_mut().is_some_and(|s| s.try_next().is_none()) {
                self.left_in_prefill += 1;
                in_prefill = leavers.pop_front().map(|request| engine.submit(&request));
                deep_before = engine.seen.deep_prefills.load(Relaxed);
            }
            if in_decode.as_mut().is_some_and(has_token) {
                self.left_in_decode += 1;
                in_decode = leavers.pop_front().map(|request| engine.submit(&request));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.talk(engine, firsts, seconds);
        let preemptions = engine.stats().preemptions;
        assert!(preemptions > 0, "{:?}", engine.handle.info());
        self.preemptions += preemptions;
    }

    /// Conversations one after another, so that second turns surely find what decode wrote.
    fn talk(
        &mut self,
        engine: &Engine,
        firsts: &[(Request, Outcome)],
        seconds: &[(Request, Outcome)],
    ) {
        for ((request, alone), second) in firsts.iter().zip(seconds).take(CONVERSATIONS) {
            let mut reader = Some(Reader::new(engine, request, alone, Some(second)));
            while let Some(mut turn) = reader.take() {
                while !turn.poll() {
                    std::thread::sleep(Duration::from_micros(200));
                }
                reader = self.finish(engine, turn);
            }
        }
    }

    fn finish<'a>(&mut self, engine: &Engine, reader: Reader<'a>) -> Option<Reader<'a>> {
        reader.outcome.assert_bits_equal(reader.alone, &reader.request.name);
        let block = engine.handle.info().block_size;
        self.tail_hits += u32::from(!reader.outcome.cached_tokens.is_multiple_of(block));
        if let Some(first) = reader.first_prompt_len {
            let blocks = (reader.outcome.cached_tokens / block).saturating_sub(first / block);
            self.decode_block_hits += blocks;
        }
        let (request, alone) = reader.follow_up?;
        let mut next = Reader::new(engine, request, alone, None);
        next.first_prompt_len = Some(reader.request.prompt.len() as u32);
        Some(next)
    }

    /// Whether the hard cases occurred, without which the test means nothing.
    pub(crate) fn has_happened(&self) -> bool {
        let Scale { least, least_left, .. } = self.scale;
        self.preemptions >= u64::from(least)
            && self.decode_block_hits >= least
            && self.tail_hits >= least / 5
            && self.left_in_prefill >= least_left
            && self.left_in_decode >= least_left
    }

    pub(crate) fn assert_it_happened(&self) {
        assert!(self.has_happened(), "{self:?}");
    }
}

impl<'a> Reader<'a> {
    fn new(
        engine: &Engine,
        request: &'a Request,
        alone: &'a Outcome,
        follow_up: Option<&'a (Request, Outcome)>,
    ) -> Self {
        let stream = engine.submit(request);
        let outcome = Outcome::default();
        Reader { request, alone, outcome, stream, follow_up, first_prompt_len: None }
    }

    /// Reads what there is; gives whether the request has ended.
    fn poll(&mut self) -> bool {
        while let Some(event) = self.stream.try_next() {
            if self.outcome.push(event) {
                return true;
            }
        }
        assert!(!self.stream.is_ended(), "{}: the stream ended early", self.request.name);
        false
    }
}

/// Clients that leave, in turn: one with a prompt so long that it is met in prefill, one that
/// leaves once it has read a token.
fn leaving_prompts(vocab: u32, num: usize) -> VecDeque<Request> {
    (0..num)
        .map(|index| Request {
            name: format!("leaver {index}"),
            prompt: tokens(700 + index as u64, if index % 2 == 0 { 900 } else { 20 }, vocab),
            sampler: SamplerParams::default(),
            max_tokens: 100,
            prompt_logprobs: None,
            salt: format!("leaver {index}").into(),
            priority: -2,
        })
        .collect()
}

fn has_token(stream: &mut EventStream) -> bool {
    while let Some(event) = stream.try_next() {
        if matches!(event, Event::Token { .. }) {
            return true;
        }
    }
    false
}
