//! What a route answers: a status, headers and a body that is whole or a stream of frames.
//!
//! The last step of the flow before the socket. Dropping a [`ReplyBody`] drops what feeds it, and
//! with it the request in the engine: hyper does so as soon as the client leaves.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use crate::http::access::Access;

/// An answer on its way to the socket.
pub type Reply = Response<ReplyBody>;

/// Frames that appear over time. Ends when the answer does.
pub type Frames = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// A body, and the record that is written once the body is gone.
pub struct ReplyBody {
    content: Content,
    access: Option<Access>,
}

enum Content {
    Full(Option<Bytes>),
    Frames(Frames),
}

impl ReplyBody {
    /// A body that is already whole.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        ReplyBody { content: Content::Full((!bytes.is_empty()).then_some(bytes)), access: None }
    }

    /// A body that appears over time.
    pub fn frames(frames: Frames) -> Self {
        ReplyBody { content: Content::Frames(frames), access: None }
    }

    /// Ties the request's record to the body's end.
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    fn note_end(&mut self) {
        if let Some(access) = &mut self.access {
            access.complete();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.content {
            Content::Full(bytes) => Poll::Ready(bytes.take()),
            Content::Frames(frames) => frames.as_mut().poll_next(cx),
        };
        if let Poll::Ready(None) = next {
            self.note_end();
        }
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
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
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // hyper does not ask again after the last frame of a body of known length.
        if self.is_end_stream() {
            self.note_end();
        }
    }
}

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
