//! Streams of chunks: one frame for all that is ready, the usage, the end mark, or an error.
//!
//! The answer's head is sent only when the first piece is there, so that what fails before it is
//! told by its status. After it a failure is an error event and then the end.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use pagoda_http::json_text::JsonText;
use pagoda_http::reply::Reply;
use pagoda_http::sse::{self, Encoder};

use crate::api::error::ApiError;
use crate::api::generation::{EndReason, Generation, Piece};
use crate::handle::AnswerRoom;
use crate::http::access::Tally;
use crate::profiles::openai::answer::Usage;
use crate::profiles::openai::errors::ErrorBody;
use crate::profiles::openai::wire::Wire;
use crate::request::TokenOut;

/// Makes chunks of an answer, in the shape of one operation.
pub trait Chunks: Send + 'static {
    /// The prompt is in the cache: comes before all else of a prompt's answer.
    fn started(&mut self, prompt_idx: usize, frame: &mut Frame<'_>);

    /// Log-probabilities of the prompt's next token, from its second one on.
    fn prompt(&mut self, prompt_idx: usize, token: TokenOut);

    /// A token of a choice, or text that it completes, to be shown.
    fn token(&mut self, at: ChoiceAt, token: TokenOut, text: String, frame: &mut Frame<'_>);

    /// The end of a choice, with the text that was held back.
    fn ended(&mut self, at: ChoiceAt, text: String, reason: &EndReason, frame: &mut Frame<'_>);

    /// The last chunk, which tells the usage alone.
    fn usage(&mut self, usage: Usage, frame: &mut Frame<'_>);
}

/// Which choice of the answer to which prompt.
#[derive(Clone, Copy, Debug)]
pub struct ChoiceAt {
    /// Number of the prompt.
    pub prompt_idx: usize,
    /// Number of the choice among the prompt's.
    pub choice: u32,
}

/// Where chunks go.
pub struct Frame<'a> {
    encoder: &'a mut Encoder,
    usage: Option<Option<Usage>>,
}

impl Frame<'_> {
    /// Adds a chunk.
    pub fn push<T: serde::Serialize>(&mut self, chunk: &T) {
        self.encoder.push(chunk);
    }

    /// Adds a chunk that is written already.
    pub fn push_text(&mut self, chunk: JsonText) {
        self.encoder.push_text(chunk);
    }

    /// Value of `usage` in ordinary chunks: absent, null, or what was used so far.
    pub fn usage(&self) -> Option<Option<Usage>> {
        self.usage
    }
}

/// The stream of an answer to one or several prompts.
pub async fn reply<C: Chunks>(
    mut generations: Vec<Generation>,
    chunks: C,
    wire: &Wire,
    tally: Arc<Tally>,
) -> Result<Reply, ApiError> {
    let rooms = generations.iter_mut().filter_map(Generation::take_room).collect();
    let mut pieces: SelectAll<BoxStream<'static, (usize, Piece)>> = SelectAll::new();
    for (prompt_idx, generation) in generations.into_iter().enumerate() {
        let next = |mut generation: Generation| async move {
            let piece = generation.next().await?;
            Some((piece, generation))
        };
        let stream = stream::unfold(generation, next);
        pieces.push(stream.map(move |piece| (prompt_idx, piece)).boxed());
    }
    let mut first = VecDeque::new();
    match pieces.next().await {
        Some((_, Piece::Failed(error))) => return Err(error),
        Some(piece) => first.push_back(piece),
        None => {}
    }
    let state = Streaming {
        pieces,
        first,
        chunks,
        tally,
        wants_tokens: wire.shows_tokens(),
        include_usage: wire.include_usage,
        continuous_usage: wire.continuous_usage,
        usage: Usage::default(),
        encoder: Encoder::default(),
        ready: VecDeque::new(),
        ended: false,
        _rooms: rooms,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let bytes = state.next_frame().await?;
        Some((bytes, state))
    });
    Ok(sse::reply(frames.boxed()))
}

struct Streaming<C> {
    pieces: SelectAll<BoxStream<'static, (usize, Piece)>>,
    first: VecDeque<(usize, Piece)>,
    chunks: C,
    tally: Arc<Tally>,
    /// Tokens are shown, not only their text.
    wants_tokens: bool,
    include_usage: bool,
    continuous_usage: bool,
    usage: Usage,
    encoder: Encoder,
    /// Blocks of frames that are to be sent.
    ready: VecDeque<Bytes>,
    ended: bool,
    /// Held until the stream is gone.
    _rooms: Vec<AnswerRoom>,
}

impl<C: Chunks> Streaming<C> {
    /// Waits for a piece and takes all that are ready with it: one write for a slow reader.
    async fn next_frame(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() && !self.ended {
            // A long prompt's log-probabilities are many pieces without a frame.
            tokio::task::coop::consume_budget().await;
            let mut piece = match self.first.pop_front() {
                Some(piece) => Some(piece),
                None => self.pieces.next().await,
            };
            for num_taken in 1.. {
                self.take(piece);
                // Whoever asks for a piece has to take it.
                if self.ended || num_taken == PIECES_PER_FRAME_MAX {
                    break;
                }
                piece = match futures_util::FutureExt::now_or_never(self.pieces.next()) {
                    Some(ready) => ready,
                    None => break,
                };
            }
            self.ready.extend(self.encoder.take());
        }
        self.ready.pop_front()
    }

    fn take(&mut self, piece: Option<(usize, Piece)>) {
        match piece {
            Some((_, Piece::Failed(error))) => {
                self.encoder.push(&ErrorBody::from(&error));
                self.ended = true;
                // Other prompts of the request end with it.
                self.pieces = SelectAll::new();
            }
            Some((prompt_idx, piece)) => {
                self.usage.count(&piece, &self.tally);
                self.encode(prompt_idx, piece);
            }
            None => {
                if self.include_usage {
                    let mut frame = Frame { encoder: &mut self.encoder, usage: None };
                    self.chunks.usage(self.usage, &mut frame);
                }
                self.encoder.push_done();
                self.ended = true;
            }
        }
    }

    fn encode(&mut self, prompt_idx: usize, piece: Piece) {
        let usage = self.usage_so_far();
        let mut frame = Frame { encoder: &mut self.encoder, usage };
        match piece {
            Piece::Started { .. } => self.chunks.started(prompt_idx, &mut frame),
            Piece::Prompt { token, .. } => self.chunks.prompt(prompt_idx, token),
            Piece::Token { choice, token, text } if self.wants_tokens || !text.is_empty() => {
                self.chunks.token(ChoiceAt { prompt_idx, choice }, token, text, &mut frame);
            }
            Piece::Ended { choice, text, reason } => {
                self.chunks.ended(ChoiceAt { prompt_idx, choice }, text, &reason, &mut frame);
            }
            Piece::Token { .. } | Piece::Failed(_) => {}
        }
    }

    fn usage_so_far(&self) -> Option<Option<Usage>> {
        match (self.include_usage, self.continuous_usage) {
            (false, _) => None,
            (true, false) => Some(None),
            (true, true) => Some(Some(self.usage)),
        }
    }
}

/// Bounds a frame, so that a reader that was slow gets its backlog in pieces.
const PIECES_PER_FRAME_MAX: usize = 256;
