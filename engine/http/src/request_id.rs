//! `X-Request-Id`: the client's if it is short and plain, else ours. Goes to logs and answers.
//!
//! Bounded and limited to characters that cannot break a log line or a header.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// Header that carries the id both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that we take from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The id of a request with these headers.
pub fn request_id(headers: &HeaderMap) -> Arc<str> {
    match headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()) {
        Some(id) if is_plain(id) => Arc::from(id),
        _ => Arc::from(format!("req_{}", uuid::Uuid::now_v7().simple())),
    }
}

/// The id as a header value. Every id that [`request_id`] returns has one.
pub fn header_value(id: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(id).ok()
}

fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(sent: &str) -> Arc<str> {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(sent.as_bytes()).unwrap());
        request_id(&headers)
    }

    #[test]
    fn plain_ids_are_kept_and_others_replaced() {
        assert_eq!(&*id_for("a-1_b.c:d/e+f="), "a-1_b.c:d/e+f=");
        for bad in ["", "has space", "quote\"", &"x".repeat(129), "ü"] {
            let id = id_for(bad);
            assert!(id.starts_with("req_") && id.len() == 36, "{id}");
            assert!(header_value(&id).is_some());
        }
    }
}
