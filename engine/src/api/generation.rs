//! An answer that is being generated: events of the engine become pieces of text.
//!
//! Runs on the connection's task. Owns the event stream: whoever drops a [`Generation`] cancels
//! the request. A choice that meets its stop string is stopped alone, and the stream is dropped once
//! all have ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::error::ApiError;
use crate::api::instance::Instance;
use crate::api::options::Options;
use crate::handle::{AnswerRoom, EventStream};
use crate::metrics::Outcome;
use crate::request::{Event, FinishReason, TokenOut};
use crate::text::{TextOptions, TextStream};
use crate::trace::record::Recorder;

pub use crate::text::Start;

/// A piece of an answer, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// The prompt is in the cache. Comes once, before all other pieces.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Of these, found in the prefix cache.
        cached_tokens: u32,
    },
    /// Prompt token `index` (from 1) with its log-probabilities.
    Prompt {
        /// Index within the prompt.
        index: u32,
        /// The token.
        token: TokenOut,
    },
    /// One generated token and the text that it completes, perhaps none.
    Token {
        /// Which choice.
        choice: u32,
        /// The token.
        token: TokenOut,
        /// Text that is now certain.
        text: String,
    },
    /// A choice has ended.
    Ended {
        /// Which choice.
        choice: u32,
        /// Text that was held back.
        text: String,
        /// Why.
        reason: EndReason,
    },
    /// The engine failed; nothing follows.
    Failed(ApiError),
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The model's own end.
    Eos,
    /// One of the request's stop tokens.
    StopToken(u32),
    /// One of the request's stop strings.
    StopString(String),
    /// `max_tokens` or the context.
    Length,
}

/// Most bytes of memory that an answer takes beside its events.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerBytes {
    /// For each token of the prompt, however many choices there are.
    pub of_prompt_token: u64,
    /// For each generated token of each choice.
    pub of_token: u64,
}

impl AnswerBytes {
    /// All of it.
    pub fn of(self, prompt_tokens: u32, num_choices: u32, max_tokens: u32) -> u64 {
        let generated = u64::from(num_choices) * u64::from(max_tokens);
        let prompt = u64::from(prompt_tokens).saturating_mul(self.of_prompt_token);
        prompt.saturating_add(generated.saturating_mul(self.of_token))
    }
}

/// An answer that is being generated. Dropping it cancels.
pub struct Generation {
    instance: Arc<Instance>,
    /// `None` once nothing more can come.
    events: Option<EventStream>,
    room: Option<AnswerRoom>,
    choices: Vec<Choice>,
    /// Tokens that end a choice: their text is never shown.
    terminal: Vec<u32>,
    stop: Vec<String>,
    include_stop: bool,
    /// A piece that follows the one that was just given.
    next: Option<Piece>,
    begun: Instant,
    has_first: bool,
    /// Writes down what becomes of it, if somebody wants to know.
    recorder: Option<Box<Recorder>>,
}

struct Choice {
    text: TextStream,
    num_tokens: u32,
    first_at: Instant,
    last_at: Instant,
    ended: bool,
}

impl Generation {
    /// Puts text onto a stream of events.
    pub(super) fn new(
        instance: Arc<Instance>,
        (events, room): (EventStream, AnswerRoom),
        options: &Options,
        start: Start,
        recorder: Option<Box<Recorder>>,
    ) -> Self {
        let text_options = TextOptions {
            start,
            skip_special: options.skip_special,
            stop: options.stop.clone(),
            include_stop: options.include_stop,
            min_tokens: options.min_tokens,
        };
        let begun = Instant::now();
        let choice = |_| Choice {
            text: TextStream::new(instance.tokenizer().clone(), &text_options),
            num_tokens: 0,
            first_at: begun,
            last_at: begun,
            ended: false,
        };
        let mut terminal = options.stop_token_ids.clone();
        if !options.ignore_eos {
            terminal.extend_from_slice(&instance.engine.info().eos_token_ids);
        }
        Generation {
            events: Some(events),
            room: Some(room),
            choices: (0..options.n).map(choice).collect(),
            terminal,
            stop: options.stop.clone(),
            include_stop: options.include_stop,
            next: None,
            begun,
            has_first: false,
            recorder,
            instance,
        }
    }

    /// The model that answers.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Room for the answer, to be held until that is gone.
    pub fn take_room(&mut self) -> Option<AnswerRoom> {
        self.room.take()
    }

    /// The next piece; `None` once all choices have ended or the engine failed.
    pub async fn next(&mut self) -> Option<Piece> {
        if let Some(piece) = self.next.take() {
            return Some(piece);
        }
        loop {
            let event = self.events.as_mut()?.next().await;
            if let Some(piece) = self.piece_of(event) {
                return Some(piece);
            }
        }
    }

    fn piece_of(&mut self, event: Option<Event>) -> Option<Piece> {
        match event {
            Some(Event::Started { prompt_tokens, cached_tokens }) => {
                if let Some(recorder) = &mut self.recorder {
                    recorder.started(prompt_tokens, cached_tokens);
                }
                Some(Piece::Started { prompt_tokens, cached_tokens })
            }
            Some(Event::Prompt { index, token }) => Some(Piece::Prompt { index, token }),
            Some(Event::Token { choice, token }) => self.token(choice, token),
            Some(Event::Finished { choice, reason }) => self.finished(choice, reason),
            Some(Event::Failed(error)) => Some(self.fail(error.into())),
            None if self.choices.iter().all(|choice| choice.ended) => {
                self.leave();
                None
            }
            // The engine thread is gone without a word.
            None => Some(self.fail(ApiError::Engine)),
        }
    }

    fn token(&mut self, index: u32, token: TokenOut) -> Option<Piece> {
        let now = Instant::now();
        let choice = self.choices.get_mut(index as usize)?;
        if choice.ended {
            return None;
        }
        let metrics = &self.instance.metrics;
        metrics.generation_tokens.increment(1);
        if !std::mem::replace(&mut self.has_first, true) {
            metrics.time_to_first_token.record(now - self.begun);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.token(now);
        }
        if choice.num_tokens == 0 {
            choice.first_at = now;
        } else {
            metrics.inter_token_latency.record(now - choice.last_at);
        }
        choice.last_at = now;
        choice.num_tokens += 1;
        let mut text = String::new();
        let is_terminal = self.terminal.contains(&token.id);
        if is_terminal && !self.include_stop {
            return Some(Piece::Token { choice: index, token, text });
        }
        if let Some(stop) = choice.text.push(token.id, &mut text) {
            let stop = self.stop.get(stop).cloned().unwrap_or_default();
            self.next = Some(self.end(index, String::new(), EndReason::StopString(stop)));
        }
        Some(Piece::Token { choice: index, token, text })
    }

    fn finished(&mut self, index: u32, reason: FinishReason) -> Option<Piece> {
        let choice = self.choices.get_mut(index as usize)?;
        if choice.ended {
            return None;
        }
        let mut text = String::new();
        let reason = match (choice.text.finish(&mut text), reason) {
            (Some(stop), _) => {
                EndReason::StopString(self.stop.get(stop).cloned().unwrap_or_default())
            }
            (None, FinishReason::Eos) => EndReason::Eos,
            (None, FinishReason::StopToken(token)) => EndReason::StopToken(token),
            // Only a choice that has ended here is stopped.
            (None, FinishReason::Length | FinishReason::Stopped) => EndReason::Length,
        };
        Some(self.end(index, text, reason))
    }

    fn end(&mut self, index: u32, text: String, reason: EndReason) -> Piece {
        let outcome = if reason == EndReason::Length { Outcome::Length } else { Outcome::Stop };
        if let Some(choice) = self.choices.get_mut(index as usize) {
            choice.ended = true;
            let (total, after_first) =
                (choice.last_at - self.begun, choice.last_at - choice.first_at);
            self.instance.metrics.choice_ended(outcome, choice.num_tokens, total, after_first);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.finished(index, if outcome == Outcome::Length { "length" } else { "stop" });
        }
        // A stop string ends a choice before the engine knows.
        if self.choices.iter().all(|choice| choice.ended) {
            self.leave();
        } else if let Some(events) = &self.events {
            events.stop(index);
        }
        Piece::Ended { choice: index, text, reason }
    }

    fn fail(&mut self, error: ApiError) -> Piece {
        self.leave();
        if let Some(recorder) = &mut self.recorder {
            recorder.failed();
        }
        self.abandon(Outcome::Error);
        Piece::Failed(error)
    }

    /// Wants no more events.
    fn leave(&mut self) {
        let events = self.events.take();
        if let (Some(recorder), Some(events)) = (&mut self.recorder, events) {
            recorder.scheduled(events.scheduled_at());
        }
    }

    fn abandon(&mut self, outcome: Outcome) {
        for choice in self.choices.iter_mut().filter(|choice| !choice.ended) {
            choice.ended = true;
            let metrics = &self.instance.metrics;
            metrics.choice_ended(outcome, choice.num_tokens, Duration::ZERO, Duration::ZERO);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.leave();
        self.abandon(Outcome::Abort);
    }
}
