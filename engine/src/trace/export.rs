//! The way to a collector: a bounded queue, batches, and OTLP over HTTP as JSON.
//!
//! Requests push and go on. What finds no room in the queue, and what a collector does not take in
//! a few tries, is dropped and counted: a collector that is down, slow or failing costs spans and
//! a line in the log, never a request and never more memory than the queue.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Tracer;
use super::span::{Span, Value, export_body};
use crate::metrics::TraceMetrics;

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    host: String,
    port: u16,
    /// What the `Host` header says.
    authority: String,
    path: String,
}

impl Collector {
    /// The collector at this base address, to whose path `/v1/traces` is added unless it ends so.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url} is no address"))?;
        if uri.scheme_str() != Some("http") {
            let reason = "must begin with http:// (for https, send to a collector on this machine)";
            return Err(reason.into());
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || authority.contains('@') || uri.query().is_some() {
            return Err("must be http://host:port, with a path at most".into());
        }
        let base = uri.path().trim_end_matches('/');
        let base = base.strip_suffix(TRACES_PATH).unwrap_or(base);
        Ok(Collector {
            host: host.trim_matches(['[', ']']).into(),
            port: uri.port_u16().unwrap_or(80),
            authority: authority.into(),
            path: format!("{base}{TRACES_PATH}"),
        })
    }
}

impl std::fmt::Display for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

const TRACES_PATH: &str = "/v1/traces";

/// The requests' end of the queue.
#[derive(Clone, Debug)]
pub struct SpanQueue {
    items: mpsc::Sender<Item>,
    metrics: TraceMetrics,
}

#[derive(Debug)]
enum Item {
    Span(Box<Span>),
    /// Whoever asked is told when all before it is sent or dropped.
    Flush(oneshot::Sender<()>),
}

impl SpanQueue {
    /// Takes all spans of a request, or drops and counts them. Never waits.
    pub fn push(&self, spans: Vec<Span>) {
        match self.items.try_reserve_many(spans.len()) {
            Ok(places) => {
                for (place, span) in places.zip(spans) {
                    place.send(Item::Span(Box::new(span)));
                }
            }
            Err(_) => self.metrics.dropped.increment(spans.len() as u64),
        }
    }
}

/// The task that sends.
#[derive(Debug)]
pub struct Exporter {
    queue: SpanQueue,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts it on the current runtime.
    pub fn start(collector: Collector, metrics: TraceMetrics) -> Self {
        let (items, queued) = mpsc::channel(QUEUED_SPANS_MAX);
        let sending = Sending { collector, queued, metrics: metrics.clone(), is_failing: false };
        Exporter { queue: SpanQueue { items, metrics }, task: tokio::spawn(sending.run()) }
    }

    /// Records requests for it: a share of `ratio` where no caller decided.
    pub fn tracer(&self, ratio: f64) -> Tracer {
        Tracer::new(self.queue.clone(), ratio)
    }

    /// Sends what is queued, within `time`, and ends.
    pub async fn finish(self, time: Duration) {
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            if self.queue.items.send(Item::Flush(done)).await.is_ok() {
                let _ = is_done.await;
            }
        };
        if timeout(time, flushed).await.is_err() {
            tracing::warn!("spans are lost: the collector did not take them in time");
        }
        self.task.abort();
    }
}

struct Sending {
    collector: Collector,
    queued: mpsc::Receiver<Item>,
    metrics: TraceMetrics,
    is_failing: bool,
}

impl Sending {
    async fn run(mut self) {
        let resource = [
            ("service.name", Value::from("pagoda")),
            ("service.version", env!("CARGO_PKG_VERSION").into()),
            ("service.instance.id", uuid::Uuid::new_v4().to_string().as_str().into()),
        ];
        let (mut batch, mut due) = (Vec::new(), Instant::now());
        loop {
            let item = tokio::select! {
                item = self.queued.recv() => Some(item),
                () = sleep_until(due), if !batch.is_empty() => None,
            };
            let flushed = match item {
                Some(None) => return,
                Some(Some(Item::Span(span))) => {
                    if batch.is_empty() {
                        due = Instant::now() + BATCH_TIME;
                    }
                    batch.push(*span);
                    if batch.len() < BATCH_SPANS {
                        continue;
                    }
                    None
                }
                Some(Some(Item::Flush(done))) => Some(done),
                None => None,
            };
            if !batch.is_empty() {
                let body = export_body(&resource, &batch);
                let num_spans = batch.len() as u64;
                batch.clear();
                self.deliver(body.into(), num_spans).await;
            }
            if let Some(done) = flushed {
                // Nobody may wait any more.
                let _ = done.send(());
            }
        }
    }

    /// Tries a few times where that may help, then drops the batch.
    async fn deliver(&mut self, body: Bytes, num_spans: u64) {
        let mut pause = FIRST_PAUSE;
        let mut failure = String::new();
        for attempt in 1..=ATTEMPTS {
            let outcome = timeout(POST_TIME, self.post(body.clone())).await;
            let may_help = match outcome {
                Ok(Ok(status)) if status.is_success() => {
                    self.metrics.exported.increment(num_spans);
                    if std::mem::replace(&mut self.is_failing, false) {
                        tracing::info!(collector = %self.collector, "spans are taken again");
                    }
                    return;
                }
                Ok(Ok(status)) => {
                    failure = format!("it answered {status}");
                    matches!(status.as_u16(), 429 | 502..=504)
                }
                Ok(Err(error)) => {
                    failure = error;
                    true
                }
                Err(_) => {
                    failure = "it did not answer in time".into();
                    true
                }
            };
            if !may_help || attempt == ATTEMPTS {
                break;
            }
            sleep(pause).await;
            pause *= 2;
        }
        self.metrics.dropped.increment(num_spans);
        // Said once until it is over.
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(collector = %self.collector, reason = %failure, "spans are dropped");
        }
    }

    /// One try, over a connection of its own.
    async fn post(&self, body: Bytes) -> Result<StatusCode, String> {
        let Collector { host, port, authority, path } = &self.collector;
        let told = |error: &dyn std::error::Error| error.to_string();
        let socket =
            TcpStream::connect((host.as_str(), *port)).await.map_err(|error| told(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| told(&error))?;
        // Ends with this call.
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let request = Request::post(path.as_str())
            .header(HOST, authority.as_str())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| told(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| told(&error))?;
        let status = answer.status();
        // Read so that the collector need not write into a closed socket; what it says is not used.
        let _ = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(status)
    }
}

/// Spans that wait at most: some 4 MiB.
const QUEUED_SPANS_MAX: usize = 4096;
/// Spans of one call.
const BATCH_SPANS: usize = 512;
/// How long a batch may fill.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// Tries of one batch.
const ATTEMPTS: u32 = 3;
/// Pause after the first of them; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long one try may take.
const POST_TIME: Duration = Duration::from_secs(5);
/// Bytes of a collector's answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_its_base_or_in_full() {
        for (url, host, port, path) in [
            ("http://localhost:4318", "localhost", 4318, "/v1/traces"),
            ("http://localhost:4318/", "localhost", 4318, "/v1/traces"),
            ("http://10.0.0.1:4318/v1/traces", "10.0.0.1", 4318, "/v1/traces"),
            ("http://otel/base/", "otel", 80, "/base/v1/traces"),
            ("http://[::1]:4318", "::1", 4318, "/v1/traces"),
        ] {
            let collector = Collector::parse(url).unwrap();
            assert_eq!((collector.host.as_str(), collector.port), (host, port), "{url}");
            assert_eq!(collector.path, path, "{url}");
        }
        for wrong in ["", "localhost:4318", "https://otel:4318", "http://", "http://me:key@otel/"] {
            assert!(Collector::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted_whole() {
        let metrics = crate::metrics::Metrics::new(false).unwrap();
        let (items, mut queued) = mpsc::channel(4);
        let queue = SpanQueue { items, metrics: TraceMetrics::new(&metrics) };
        queue.push(crate::trace::tests::spans(3));
        queue.push(crate::trace::tests::spans(2));
        queue.push(crate::trace::tests::spans(1));
        let text = metrics.render(&[]);
        assert!(text.contains("pagoda_trace_spans_dropped_total 2\n"), "{text}");
        let mut num_taken = 0;
        while queued.try_recv().is_ok() {
            num_taken += 1;
        }
        assert_eq!(num_taken, 4);
    }
}
