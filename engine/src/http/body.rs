//! Reads a request body: bounded in bytes and time, and against a budget of memory for all bodies.
//!
//! What a body takes is reserved before it is taken: its text several times over, and its values
//! by a count that is made as the text arrives. A body that is too large is read on and thrown away
//! for a while after the answer, because a connection closed over unread data resets, and the
//! client would never see the 413.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::error::ApiError;
use crate::api::room::Room;
use crate::config::Limits;
use crate::http::values::ValueCount;

/// Room for bodies that are in memory at the same time.
#[derive(Debug)]
pub struct BodyBudget {
    kib: Arc<Semaphore>,
    body_bytes_max: u64,
    values_max: u64,
    timeout: Duration,
}

/// A parsed body. The room of its values is free again once this is dropped; that of its text goes
/// with the texts that were read from it.
#[derive(Debug)]
pub struct BodyObject {
    object: Map<String, Value>,
    _values: Option<OwnedSemaphorePermit>,
    room: Room,
}

impl BodyObject {
    /// Room for what is read from the body, to be held until that is gone.
    pub fn room(&self) -> Room {
        self.room.clone()
    }
}

impl std::ops::Deref for BodyObject {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.object
    }
}

/// Bytes that a body of `text_bytes` with `values` values takes in memory at most, from its
/// arrival until its prompts are token ids. `tests/request_room.rs` measures it.
pub fn room_bytes(text_bytes: u64, values: u64) -> u64 {
    let text = text_bytes.saturating_mul(TEXT_COPIES);
    text.saturating_add(values.saturating_mul(VALUE_BYTES))
}

impl BodyBudget {
    /// Budget after the limits.
    pub fn new(limits: &Limits) -> Arc<Self> {
        let text = room_bytes(limits.body_bytes_max, 0).saturating_add(ROOM_STEP_BYTES);
        // The largest body alone always fits.
        let bytes = limits.body_bytes_total.max(text.saturating_add(room_bytes(0, VALUES_MIN)));
        let kib = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX);
        Arc::new(BodyBudget {
            kib: Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS))),
            body_bytes_max: limits.body_bytes_max,
            values_max: (bytes - text) / VALUE_BYTES,
            timeout: limits.body_timeout,
        })
    }

    /// Reads a JSON object. Its bytes are freed before this returns; the values stay.
    pub async fn read_object(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<BodyObject, ApiError> {
        let declared = body.size_hint().upper();
        let refused = if !claims_json(headers) {
            Some(ApiError::WrongMediaType)
        } else if !is_plain(headers) {
            Some(ApiError::WrongEncoding)
        } else if declared.is_some_and(|bytes| bytes > self.body_bytes_max) {
            Some(ApiError::TooLarge { limit: self.body_bytes_max })
        } else {
            None
        };
        if let Some(refused) = refused {
            self.linger(headers, body);
            return Err(refused);
        }
        let mut room = self.reserve(0).await?;
        let bytes = self.read(headers, body, &mut room).await?;
        let text_kib = room_bytes(bytes.len() as u64, 0).div_ceil(1024) as usize;
        let (object, mut room) = parse(bytes, room).await?;
        let values = room.split(room.num_permits().saturating_sub(text_kib));
        Ok(BodyObject { object, _values: values, room: room.into() })
    }

    /// Room that nobody has taken.
    #[cfg(test)]
    pub(crate) fn left_kib(&self) -> usize {
        self.kib.available_permits()
    }

    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ApiError> {
        // At most what `new` found room for, below 4 TiB.
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let wait = ROOM_WAIT_MAX.min(self.timeout);
        match tokio::time::timeout(wait, self.kib.clone().acquire_many_owned(kib)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(ApiError::Busy { retry_after_s: 1 }),
        }
    }

    /// Room is taken as bytes arrive, so that a claim alone takes none from others.
    async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
        room: &mut OwnedSemaphorePermit,
    ) -> Result<Bytes, ApiError> {
        let late = ApiError::BodyTimeout { seconds: self.timeout.as_secs() };
        let (mut bytes, mut values) = (BytesMut::new(), ValueCount::default());
        let deadline = tokio::time::Instant::now() + self.timeout;
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(bytes.freeze()),
                // Broken framing; a body that breaks off has no reader for this answer.
                Ok(Some(Err(_))) => {
                    return Err(ApiError::BadJson("The request body is broken.".into()));
                }
                Err(_) => return Err(late),
            };
            let Ok(data) = frame.into_data() else { continue };
            if (bytes.len() + data.len()) as u64 > self.body_bytes_max {
                self.linger(headers, body);
                return Err(ApiError::TooLarge { limit: self.body_bytes_max });
            }
            values.feed(&data);
            if values.count() > self.values_max {
                self.linger(headers, body);
                return Err(ApiError::TooManyValues { limit: self.values_max });
            }
            let needed = room_bytes((bytes.len() + data.len()) as u64, values.count());
            let held = room.num_permits() as u64 * 1024;
            if let Some(more) = needed.checked_sub(held).filter(|more| *more > 0) {
                match self.reserve(more.max(ROOM_STEP_BYTES)).await {
                    Ok(more) => room.merge(more),
                    Err(busy) => {
                        self.linger(headers, body);
                        return Err(busy);
                    }
                }
            }
            bytes.extend_from_slice(&data);
        }
    }

    /// Reads on in the background, so that the answer to a body we refuse is seen.
    pub fn linger(&self, headers: &HeaderMap, mut body: Incoming) {
        // A client that expects waits for our answer before it sends; reading would invite it.
        if body.is_end_stream() || headers.contains_key(EXPECT) {
            return;
        }
        let mut left = self.body_bytes_max.saturating_mul(LINGER_BODIES_MAX).max(LINGER_BYTES_MIN);
        tokio::spawn(tokio::time::timeout(LINGER_TIME_MAX, async move {
            while let Some(Ok(frame)) = body.frame().await {
                let read = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(rest) = left.checked_sub(read) else { break };
                left = rest;
            }
        }));
    }
}

/// How often a body's text lies in memory at most: twice in the buffer that grew with it, once in
/// its values and once in what is being read, be it a string of the parser's, a prompt, or the ids
/// of two-byte numbers.
const TEXT_COPIES: u64 = 4;

/// Bytes that a comma, colon or bracket stands for at most, beside its text: a place in a list or map
/// that grew by doubling, or a list of its own, which begins with room for four values.
const VALUE_BYTES: u64 = 320;

/// Values that every installation reads in one body.
const VALUES_MIN: u64 = 1 << 16;

/// Larger bodies are parsed on a thread that may block.
const PARSE_HERE_BYTES_MAX: usize = 64 << 10;

/// Room is taken in steps of this size, so that a body of many small frames asks seldom.
const ROOM_STEP_BYTES: u64 = 64 << 10;

/// How long a request waits for room in the budget before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);

/// A refused body is read on for at most this long,
const LINGER_TIME_MAX: Duration = Duration::from_secs(20);

/// and for at most this many times the largest body,
const LINGER_BODIES_MAX: u64 = 4;

/// but at least this far.
const LINGER_BYTES_MIN: u64 = 64 << 20;

/// Absent is taken for JSON. Anything else is refused, also because a page of another origin can
/// send form and plain text bodies without asking, but not JSON.
fn claims_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Whether the body is sent as it is.
fn is_plain(headers: &HeaderMap) -> bool {
    let plain =
        |value: &hyper::header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(CONTENT_ENCODING).iter().all(plain)
}

/// The room goes along: a client that leaves does not stop the parser.
async fn parse(
    bytes: Bytes,
    room: OwnedSemaphorePermit,
) -> Result<(Map<String, Value>, OwnedSemaphorePermit), ApiError> {
    if bytes.len() <= PARSE_HERE_BYTES_MAX {
        return Ok((parse_object(&bytes)?, room));
    }
    let work = move || {
        let parsed = parse_object(&bytes);
        drop(bytes);
        (parsed, room)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok((parsed, room)) => Ok((parsed?, room)),
        Err(_panicked) => Err(ApiError::Internal),
    }
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::BadJson("The request body must be a JSON object.".into())),
        Err(error) => Err(ApiError::BadJson(format!(
            "We could not parse the JSON body of your request: {} at line {} column {}.",
            kind_of(&error),
            error.line(),
            error.column()
        ))),
    }
}

/// serde's own text can quote the body, and bodies never reach a log.
fn kind_of(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "unexpected end",
        serde_json::error::Category::Syntax => "syntax error",
        serde_json::error::Category::Data => "value out of range",
        serde_json::error::Category::Io => "unreadable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn only_json_is_json() {
        let claims = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            claims_json(&headers)
        };
        assert!(claims_json(&HeaderMap::new()));
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
    fn broken_json_is_told_without_quoting_it() {
        let error = parse_object(br#"{"messages": [secret]}"#).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 1") && !text.contains("secret"), "{text}");
        assert!(parse_object(b"[]").is_err());
        assert!(parse_object(b"").is_err());
        assert!(parse_object(&[b'['; 100_000]).is_err());
        assert_eq!(parse_object(b"{}").unwrap().len(), 0);
    }
}
