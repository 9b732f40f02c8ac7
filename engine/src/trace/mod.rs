//! Traces: which trace a request belongs to, what is written down of it, and where that goes.
//!
//! A [`Trace`] travels with a request from its headers to its last byte. What is recorded becomes
//! spans when the request is over, and those go to a bounded queue without waiting: a collector can
//! lose spans, never delay a request. Holds no prompt, no output and no key.

/// `traceparent` and `tracestate`.
pub mod context;

/// What is written down of a request.
pub mod record;

/// Spans, and their form on the wire.
pub mod span;

/// A collector and what it answers.
pub mod collector;

/// The way to a collector.
pub mod export;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::HeaderValue;

use context::Incoming;
use export::SpanQueue;
use record::{Answered, Ended, spans_of};

/// Begins the traces of a listener's requests.
#[derive(Debug, Default)]
pub struct Tracer {
    queue: Option<SpanQueue>,
    sampling: Sampling,
}

/// Which requests are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Whether those with a `traceparent` are recorded if and only if that says so.
    pub asks_caller: bool,
    /// Share of the others, 0 to 1.
    pub ratio: f64,
}

impl Default for Sampling {
    /// OpenTelemetry's.
    fn default() -> Self {
        Sampling { asks_caller: true, ratio: 1.0 }
    }
}

impl Tracer {
    /// Records requests and hands their spans to `queue`. [`Tracer::default`] records nothing.
    pub fn new(queue: SpanQueue, sampling: Sampling) -> Self {
        Tracer { queue: Some(queue), sampling }
    }

    /// The trace of a request with these headers.
    pub fn begin(&self, headers: &HeaderMap) -> Trace {
        let incoming = Incoming::read(headers);
        if incoming.is_none() && self.queue.is_none() {
            return Trace::default();
        }
        let (trace_id, parent_id, asked, state) = match incoming {
            Some(it) => (it.trace_id, Some(it.span_id), Some(it.sampled), it.state),
            None => (random_id(), None, None, None),
        };
        let Sampling { asks_caller, ratio } = self.sampling;
        let asked = asked.filter(|_| asks_caller);
        Trace(Some(Arc::new(Begun {
            id: hex_text(&trace_id),
            span_id: random_id(),
            parent_id,
            state,
            sampled: asked.unwrap_or_else(|| is_taken(trace_id, ratio)),
            clock: Clock { began: Instant::now(), began_at: SystemTime::now() },
            answered: Mutex::default(),
            queue: self.queue.clone(),
        })))
    }
}

/// The trace that a request belongs to, if any. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Begun>>);

/// A request that belongs to a trace.
#[derive(Debug)]
struct Begun {
    /// Id of the trace, in hexadecimal digits.
    id: String,
    /// Id of the request's own span.
    span_id: [u8; 8],
    /// Id of the caller's span.
    parent_id: Option<[u8; 8]>,
    /// The caller's `tracestate`.
    state: Option<String>,
    sampled: bool,
    clock: Clock,
    answered: Mutex<Vec<Answered>>,
    /// `None` if no spans are wanted at all.
    queue: Option<SpanQueue>,
}

impl Trace {
    /// Id of the trace, for logs.
    pub fn id(&self) -> Option<&str> {
        self.0.as_ref().map(|begun| begun.id.as_str())
    }

    /// Whether spans will be made of the request.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.sampled && begun.queue.is_some())
    }

    /// Value of `traceresponse`, which names the span to look for. Only where there may be one.
    pub fn response(&self) -> Option<HeaderValue> {
        let begun = self.0.as_ref().filter(|begun| begun.queue.is_some())?;
        let (id, span) = (&begun.id, hex_text(&begun.span_id));
        HeaderValue::try_from(format!("00-{id}-{span}-{:02x}", u8::from(begun.sampled))).ok()
    }

    /// The request is over: hands its spans over, or drops and counts them.
    pub fn end(&self, ended: &Ended<'_>) {
        let Some(begun) = self.0.as_ref().filter(|_| self.is_recorded()) else { return };
        let answered = std::mem::take(&mut *begun.lock());
        if let Some(queue) = &begun.queue {
            queue.push(spans_of(begun, answered, ended));
        }
    }

    /// Takes what became of a prompt.
    fn add(&self, answered: Answered) {
        if let Some(begun) = &self.0 {
            begun.lock().push(answered);
        }
    }
}

impl Begun {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Answered>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns instants into wall time: one reading of both clocks a request, so that its spans lie to
/// each other as they happened.
#[derive(Clone, Copy, Debug)]
struct Clock {
    began: Instant,
    began_at: SystemTime,
}

impl Clock {
    /// Nanoseconds of `instant` since 1970.
    fn unix_ns(self, instant: Instant) -> u64 {
        let since_1970 = self.began_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let then = since_1970 + instant.saturating_duration_since(self.began);
        u64::try_from(then.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Whether a trace that nobody decided about is among the share of `ratio`: by the lower half of its
/// id, as OpenTelemetry's own samplers do, so that all who ask decide alike.
fn is_taken(trace_id: [u8; 16], ratio: f64) -> bool {
    let [.., a, b, c, d, e, f, g, h] = trace_id;
    let share = u64::from_be_bytes([a, b, c, d, e, f, g, h]) as f64 / 2f64.powi(64);
    // The largest numbers round to 1.
    share < ratio || ratio >= 1.0
}

/// Evenly distributed bytes; all zero, which no id may be, is what nobody will ever see.
fn random_id<const N: usize>() -> [u8; N] {
    // Some bits of a UUID are fixed, none of its hash are.
    let hash = blake3::hash(uuid::Uuid::new_v4().as_bytes());
    let mut id = [0; N];
    id.copy_from_slice(&hash.as_bytes()[..N]);
    id
}

fn hex_text(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 15];
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(digits).map(digit).collect()
}

#[cfg(test)]
mod tests;
