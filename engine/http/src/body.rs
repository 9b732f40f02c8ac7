//! Reads a request body, bounded in bytes and time.
//!
//! A body that is refused is read on and thrown away for a while after the answer, because a
//! connection closed over unread data resets, and the client would never see the answer. Keeps no
//! bytes: whoever reads says what they may take.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderValue, ORIGIN};
use tokio::time::Instant;

use crate::limits::Limits;

/// Why a body is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is not said to be JSON.
    #[error("Unsupported content type; send application/json")]
    WrongMediaType,
    /// It is compressed.
    #[error("Unsupported content encoding; send the body as it is")]
    WrongEncoding,
    /// It has more bytes than are read.
    #[error("The request body is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Largest body in bytes.
        limit: u64,
    },
    /// It did not arrive in time.
    #[error("The request body did not arrive within {} s", time.as_secs())]
    Late {
        /// Time that a body may take.
        time: Duration,
    },
    /// Its framing is broken. A body that breaks off has no reader for an answer.
    #[error("The request body is broken.")]
    Broken,
}

/// A body that is being read.
#[derive(Debug)]
pub struct Arriving {
    /// `None` once it is refused.
    body: Option<Incoming>,
    is_awaited: bool,
    num_bytes: u64,
    bytes_max: u64,
    timeout: Duration,
    deadline: Instant,
}

/// Begins to read a body that shall be JSON, whatever its text is.
pub fn open_json(
    limits: &Limits,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Arriving, BodyError> {
    if !claims_json(headers) {
        linger(limits, headers, body);
        return Err(BodyError::WrongMediaType);
    }
    open(limits, headers, body)
}

/// Begins to read a body of any type.
pub fn open(limits: &Limits, headers: &HeaderMap, body: Incoming) -> Result<Arriving, BodyError> {
    let limit = limits.body_bytes_max;
    let refused = if !is_plain(headers) {
        Some(BodyError::WrongEncoding)
    } else if body.size_hint().upper().is_some_and(|bytes| bytes > limit) {
        Some(BodyError::TooLarge { limit })
    } else {
        None
    };
    let mut arriving = Arriving {
        body: Some(body),
        is_awaited: is_awaited(headers),
        num_bytes: 0,
        bytes_max: limit,
        timeout: limits.body_timeout,
        deadline: Instant::now() + limits.body_timeout,
    };
    match refused {
        Some(refused) => {
            arriving.refuse();
            Err(refused)
        }
        None => Ok(arriving),
    }
}

/// Reads a body that nobody wants on in the background, so that the answer to it is seen.
pub fn linger(limits: &Limits, headers: &HeaderMap, body: Incoming) {
    if !is_awaited(headers) {
        read_on(limits.body_bytes_max, body);
    }
}

impl Arriving {
    /// The next bytes, `None` at the end. After an error nothing more can be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let body = self.body.as_mut().ok_or(BodyError::Broken)?;
            let frame = match tokio::time::timeout_at(self.deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(self.ended(BodyError::Broken)),
                Err(_) => return Err(self.ended(BodyError::Late { time: self.timeout })),
            };
            let Ok(data) = frame.into_data() else { continue };
            self.num_bytes += data.len() as u64;
            if self.num_bytes > self.bytes_max {
                self.refuse();
                return Err(BodyError::TooLarge { limit: self.bytes_max });
            }
            return Ok(Some(data));
        }
    }

    /// All of it.
    pub async fn whole(mut self) -> Result<Bytes, BodyError> {
        let mut bytes = BytesMut::new();
        while let Some(data) = self.next().await? {
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }

    /// Nothing more comes of this body, so there is nothing to read on.
    fn ended(&mut self, error: BodyError) -> BodyError {
        self.body = None;
        error
    }

    /// Reads on in the background, so that the answer to a body that is not taken is seen.
    pub fn refuse(&mut self) {
        let Some(body) = self.body.take() else { return };
        if !self.is_awaited {
            read_on(self.bytes_max, body);
        }
    }
}

/// A client that expects waits for our answer before it sends; reading would invite it.
fn is_awaited(headers: &HeaderMap) -> bool {
    headers.contains_key(EXPECT)
}

fn read_on(bytes_max: u64, mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let mut left = bytes_max.saturating_mul(LINGER_BODIES_MAX).max(LINGER_BYTES_MIN);
    tokio::spawn(tokio::time::timeout(LINGER_TIME_MAX, async move {
        while let Some(Ok(frame)) = body.frame().await {
            let read = frame.data_ref().map_or(0, Bytes::len) as u64;
            let Some(rest) = left.checked_sub(read) else { break };
            left = rest;
        }
    }));
}

/// A refused body is read on for at most this long,
const LINGER_TIME_MAX: Duration = Duration::from_secs(20);

/// and for at most this many times the largest body,
const LINGER_BODIES_MAX: u64 = 4;

/// but at least this far.
const LINGER_BYTES_MIN: u64 = 64 << 20;

/// What is wrong with a text that is no JSON, and where. serde's own words can quote the text.
pub fn json_fault(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Eof => "unexpected end",
        serde_json::error::Category::Syntax => "syntax error",
        serde_json::error::Category::Data => "value out of range",
        serde_json::error::Category::Io => "unreadable",
    };
    format!("{kind} at line {} column {}", error.line(), error.column())
}

/// Absent is taken for JSON, but not from a browser. Anything else is refused: a page of another
/// origin can send forms, plain text and bytes of no type without asking, but not JSON.
fn claims_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return !headers.contains_key(ORIGIN) };
    let Ok(value) = value.to_str() else { return false };
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Whether the body is sent as it is.
fn is_plain(headers: &HeaderMap) -> bool {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(CONTENT_ENCODING).iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        let claims = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            claims_json(&headers)
        };
        assert!(claims_json(&HeaderMap::new()));
        let from_page = (ORIGIN, HeaderValue::from_static("https://evil.example"));
        assert!(!claims_json(&HeaderMap::from_iter([from_page])));
        assert!(claims("application/json"));
        assert!(claims("Application/JSON; charset=utf-8"));
        assert!(claims("application/vnd.openai.v1+json"));
        assert!(!claims("text/plain"));
        assert!(!claims("application/x-www-form-urlencoded"));
        assert!(!claims("multipart/form-data; boundary=application/json"));
    }

    #[test]
    fn only_a_plain_body_is_read() {
        let plain = |encoding: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
            is_plain(&headers)
        };
        assert!(is_plain(&HeaderMap::new()) && plain("identity") && plain("Identity"));
        assert!(!plain("gzip") && !plain("identity, br") && !plain(""));
    }

    #[test]
    fn a_fault_is_told_without_quoting() {
        let error = serde_json::from_str::<serde_json::Value>(r#"{"messages": [secret]}"#);
        assert_eq!(json_fault(&error.unwrap_err()), "syntax error at line 1 column 15");
    }
}
