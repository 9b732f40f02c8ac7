//! What a route answers: a status, headers and a body that is whole or a stream of frames.
//!
//! The last step of the flow before the socket. Dropping a [`ReplyBody`] drops what feeds it: hyper does
//! so as soon as the client leaves, and a body that nobody takes for too long frees what it holds by
//! itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use crate::untaken::Untaken;
use crate::uses::Use;

/// An answer on its way to the socket.
pub type Reply = Response<ReplyBody>;

/// Frames that appear over time. Ends when the answer does.
pub type Frames = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// What is to be done once an answer is over: whoever implements it does so when it is dropped.
pub trait Record: Send {
    /// The whole answer was handed to the socket.
    fn complete(&mut self);
}

/// A body, and the record that ends with it.
pub struct ReplyBody(Held);

enum Held {
    Here(Parts),
    /// Until nobody takes it for too long.
    Untaken(Untaken<Parts>),
}

struct Parts {
    content: Content,
    record: Option<Box<dyn Record>>,
    _use: Option<Use>,
}

enum Content {
    Full(Option<Bytes>),
    Frames(Frames),
}

impl ReplyBody {
    /// A body that is already whole.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(Content::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// A body that appears over time.
    pub fn frames(frames: Frames) -> Self {
        Self::new(Content::Frames(frames))
    }

    fn new(content: Content) -> Self {
        ReplyBody(Held::Here(Parts { content, record: None, _use: None }))
    }

    /// Ties the request's record to the body's end.
    pub fn recorded(mut self, record: Box<dyn Record>) -> Self {
        if let Held::Here(parts) = &mut self.0 {
            parts.record = Some(record);
        }
        self
    }

    /// Ties the use of the connection to the body's end, and bounds the time in which nobody takes
    /// any of it. What is over by then has its record dropped, and frees what feeds it.
    pub(crate) fn guarded(self, in_use: Use, untaken_max: Duration) -> Self {
        let Held::Here(mut parts) = self.0 else { return self };
        parts._use = Some(in_use);
        if parts.is_short() {
            return ReplyBody(Held::Here(parts));
        }
        ReplyBody(Held::Untaken(Untaken::new(parts, untaken_max)))
    }
}

impl Parts {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let next = match &mut self.content {
            Content::Full(bytes) => Poll::Ready(bytes.take()),
            Content::Frames(frames) => frames.as_mut().poll_next(cx),
        };
        if let Poll::Ready(None) = next {
            self.note_end();
        }
        next
    }

    /// Whether it is in memory and not worth a watch.
    fn is_short(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.as_ref().is_none_or(|bytes| bytes.len() <= SHORT_BYTES),
            Content::Frames(_) => false,
        }
    }

    fn is_end(&self) -> bool {
        matches!(self.content, Content::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Content::Frames(_) => SizeHint::default(),
        }
    }

    fn note_end(&mut self) {
        if let Some(record) = &mut self.record {
            record.complete();
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // hyper does not ask again after the last frame of a body of known length.
        if self.is_end() {
            self.note_end();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    /// The time was over.
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match &mut self.0 {
            Held::Here(parts) => parts.poll(cx).map(Some),
            Held::Untaken(parts) => parts.poll(cx, Parts::poll),
        };
        next.map(|next| match next {
            Some(bytes) => bytes.map(|bytes| Ok(Frame::data(bytes))),
            None => Some(Err(io::ErrorKind::TimedOut.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Held::Here(parts) => parts.is_end(),
            Held::Untaken(parts) => parts.look(Parts::is_end).unwrap_or(false),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Held::Here(parts) => parts.size_hint(),
            Held::Untaken(parts) => parts.look(Parts::size_hint).unwrap_or_default(),
        }
    }
}

/// A body of at most so many bytes may be held for as long as its connection lives.
const SHORT_BYTES: usize = 4 << 10;

/// A JSON answer.
pub fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(status, "application/json", bytes),
        // Our own wire structs serialise; a map with non-string keys would be a defect.
        Err(_) => with_type(StatusCode::INTERNAL_SERVER_ERROR, "application/json", "{}"),
    }
}

/// A JSON answer whose text is written while it is sent.
pub fn json_blocks<B>(status: StatusCode, blocks: B) -> Reply
where
    B: Iterator<Item = Bytes> + Send + 'static,
{
    let mut reply = Response::new(ReplyBody::frames(Box::pin(stream::iter(blocks))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// An answer of any fixed type.
pub fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::full(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// The head of an answer to HEAD: with the length that GET would have told.
pub fn without_body(reply: Reply) -> Reply {
    let length = reply.body().size_hint().exact();
    let mut reply = reply.map(|_| ReplyBody::full(""));
    if let Some(length) = length {
        reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    reply
}
