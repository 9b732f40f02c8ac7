//! Server-sent events: one JSON value a frame.
//!
//! JSON holds no raw line break, so one `data:` line carries any value. A frame is written whole, so
//! that it leaves in one write unless it is longer than a block of text.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::json_text::JsonText;
use crate::reply::{Frames, Reply, ReplyBody};

/// The frame that ends a stream in OpenAI's shape.
pub const DONE: &str = "data: [DONE]\n\n";

/// Frames of one stream.
#[derive(Debug, Default)]
pub struct Encoder {
    frames: JsonText,
    /// A value that is being written.
    value: Vec<u8>,
}

impl Encoder {
    /// Adds `data: {…}` and the empty line to what [`Encoder::take`] returns.
    pub fn push<T: serde::Serialize>(&mut self, value: &T) {
        self.value.clear();
        if serde_json::to_writer(&mut self.value, value).is_err() {
            // Our own wire structs serialise; never let half a frame out.
            return;
        }
        self.frames.raw("data: ").bytes(&self.value).raw("\n\n");
    }

    /// Adds a value that is written already.
    pub fn push_text(&mut self, value: JsonText) {
        self.frames.raw("data: ").share(&value.into_shared()).raw("\n\n");
    }

    /// Adds the end mark.
    pub fn push_done(&mut self) {
        self.frames.raw(DONE);
    }

    /// All frames since the last call, in blocks.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.frames.take()
    }
}

/// The answer that carries a stream of frames.
pub fn reply(frames: Frames) -> Reply {
    let mut reply = Response::new(ReplyBody::frames(frames));
    *reply.status_mut() = StatusCode::OK;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks nginx not to hold events back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_follow_each_other() {
        let mut encoder = Encoder::default();
        encoder.push(&serde_json::json!({"a": 1}));
        encoder.push_done();
        assert_eq!(encoder.take().concat(), b"data: {\"a\":1}\n\ndata: [DONE]\n\n");
        assert!(encoder.take().is_empty());
    }

    proptest! {
        /// Any text survives a reader that knows only lines: nothing in it can end a frame early.
        #[test]
        fn no_text_can_break_a_frame(texts in prop::collection::vec(any::<String>(), 1..5)) {
            let mut encoder = Encoder::default();
            for text in &texts {
                encoder.push(text);
            }
            let bytes = encoder.take().concat();
            let stream = std::str::from_utf8(&bytes).unwrap();
            let read: Vec<String> = stream
                .split_terminator("\n\n")
                .map(|frame| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap())
                .collect();
            prop_assert_eq!(read, texts);
        }
    }
}
