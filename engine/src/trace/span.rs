//! Spans, and their form on the wire: OTLP as JSON.
//!
//! Numbers of 64 bits are text there and ids hexadecimal digits, as OTLP's mapping to JSON says.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::hex_text;

/// One span.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace, in hexadecimal digits.
    pub trace_id: Arc<str>,
    /// Its own id.
    pub span_id: [u8; 8],
    /// The span above it.
    pub parent_id: Option<[u8; 8]>,
    /// The caller's `tracestate`.
    pub state: Option<Arc<str>>,
    /// Whether it answers a call or is a part of that.
    pub kind: Kind,
    /// What it is.
    pub name: String,
    /// Nanoseconds since 1970.
    pub began_ns: u64,
    /// Nanoseconds since 1970.
    pub ended_ns: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, in words of ours.
    pub error: Option<&'static str>,
}

/// OTLP's kinds, as far as we have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of an answer.
    Internal = 1,
    /// An answer.
    Server = 2,
}

/// Value of an attribute. A number that OTLP cannot hold would have a collector refuse the whole
/// batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number: signed, as OTLP has no other.
    Int(i64),
    /// Any number.
    Float(f64),
    /// Several texts.
    Texts(Vec<&'static str>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Int(number.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Float(number)
    }
}

impl Value {
    fn json(&self) -> Json {
        match self {
            Value::Text(text) => json!({"stringValue": text}),
            Value::Int(number) => json!({"intValue": number.to_string()}),
            Value::Float(number) => json!({"doubleValue": number}),
            Value::Texts(texts) => {
                let values: Vec<Json> =
                    texts.iter().map(|text| json!({"stringValue": text})).collect();
                json!({"arrayValue": {"values": values}})
            }
        }
    }
}

fn attributes_json(attributes: &[(&'static str, Value)]) -> Json {
    attributes.iter().map(|(key, value)| json!({"key": key, "value": value.json()})).collect()
}

impl Span {
    fn flags(&self) -> u32 {
        let is_remote = self.kind == Kind::Server && self.parent_id.is_some();
        SAMPLED | TELLS_REMOTE | if is_remote { IS_REMOTE } else { 0 }
    }

    fn json(&self) -> Json {
        let mut span = json!({
            "traceId": &*self.trace_id,
            "spanId": hex_text(&self.span_id),
            "name": self.name,
            "kind": self.kind as u8,
            "startTimeUnixNano": self.began_ns.to_string(),
            "endTimeUnixNano": self.ended_ns.to_string(),
            "attributes": attributes_json(&self.attributes),
            "flags": self.flags(),
        });
        if let Some(parent) = &self.parent_id {
            span["parentSpanId"] = hex_text(parent).into();
        }
        if let Some(state) = &self.state {
            span["traceState"] = Json::from(&**state);
        }
        if let Some(message) = self.error {
            span["status"] = json!({"code": STATUS_ERROR, "message": message});
        }
        span
    }
}

/// Flag of a trace that is recorded.
const SAMPLED: u32 = 1;
/// Flag of a span that tells whether the one above it is of another process,
const TELLS_REMOTE: u32 = 1 << 8;
/// and of one whose is.
const IS_REMOTE: u32 = 1 << 9;
/// OTLP's status of what failed.
const STATUS_ERROR: u32 = 2;

/// The body of a call to a collector: all spans, of the process that `resource` describes.
pub fn export_body(resource: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let spans: Vec<Json> = spans.iter().map(Span::json).collect();
    let resource: Vec<Json> = resource
        .iter()
        .map(|(key, value)| json!({"key": key, "value": {"stringValue": value}}))
        .collect();
    let scope = json!({"name": "pagoda", "version": env!("CARGO_PKG_VERSION")});
    let body = json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]});
    body.to_string().into_bytes()
}
