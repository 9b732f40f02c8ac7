//! The way to a collector: a bounded queue, batches, and OTLP over HTTP as JSON.
//!
//! Requests push and go on. What finds no room in the queue, and what a collector does not take in
//! a few tries, is dropped and counted: a collector that is down, slow or failing costs spans and
//! a line in the log, never a request and never more memory than the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::collector::{Answer, Collector, Line};
use super::span::{Span, export_body};
use super::{Sampling, Tracer, random_id};
use crate::metrics::TraceMetrics;

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
    /// Starts it on the current runtime, for the process that `resource` describes beside what it
    /// says of itself. Fails if the collector's certificates cannot be read.
    pub fn start(
        collector: Collector,
        resource: &[(String, String)],
        metrics: TraceMetrics,
    ) -> Result<Self, String> {
        let (items, queued) = mpsc::channel(QUEUED_SPANS_MAX);
        let sending = Sending {
            name: collector.to_string(),
            line: Arc::new(Line::open(collector)?),
            resource: described(resource),
            queued,
            metrics: metrics.clone(),
            is_failing: false,
        };
        Ok(Exporter { queue: SpanQueue { items, metrics }, task: tokio::spawn(sending.run()) })
    }

    /// Records requests for it.
    pub fn tracer(&self, sampling: Sampling) -> Tracer {
        Tracer::new(self.queue.clone(), sampling)
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

/// What spans say of their process: `told`, and of the rest what we know.
fn described(told: &[(String, String)]) -> Vec<(String, String)> {
    let instance = uuid::Uuid::new_v4().to_string();
    let known = [
        ("service.name", "pagoda"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance.as_str()),
    ];
    let is_told = |key: &str| told.iter().any(|(name, _)| name == key);
    let rest = known.into_iter().filter(|(key, _)| !is_told(key));
    let rest = rest.map(|(key, value)| (key.to_owned(), value.to_owned()));
    told.iter().cloned().chain(rest).collect()
}

struct Sending {
    /// The collector's, for the log.
    name: String,
    line: Arc<Line>,
    resource: Vec<(String, String)>,
    queued: mpsc::Receiver<Item>,
    metrics: TraceMetrics,
    is_failing: bool,
}

impl Sending {
    async fn run(mut self) {
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
                let body = export_body(&self.resource, &batch);
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
    async fn deliver(&mut self, body: Arc<[u8]>, num_spans: u64) {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let (line, body) = (self.line.clone(), body.clone());
            let answer = spawn_blocking(move || line.post(&body)).await;
            let answer = answer.unwrap_or_else(|error| Answer::Refused { why: error.to_string() });
            match answer {
                Answer::Taken { rejected, why } => {
                    self.count(num_spans, rejected.min(num_spans), &why);
                    return;
                }
                Answer::Later { wait, .. } if attempt < ATTEMPTS => {
                    // Who named no time is not asked by everybody at once.
                    let wait = wait.unwrap_or_else(|| pause.mul_f64(0.75 + some_share() / 2.0));
                    sleep(wait.min(PAUSE_MAX)).await;
                    pause *= 2;
                }
                Answer::Later { why, .. } | Answer::Refused { why } => {
                    self.count(num_spans, num_spans, &why);
                    return;
                }
            }
        }
    }

    /// Counts what became of a batch. That spans are lost is said once, until none are.
    fn count(&mut self, num_spans: u64, num_dropped: u64, why: &str) {
        self.metrics.exported.increment(num_spans - num_dropped);
        self.metrics.dropped.increment(num_dropped);
        let is_failing = num_dropped > 0;
        match (std::mem::replace(&mut self.is_failing, is_failing), is_failing) {
            (false, true) => {
                tracing::warn!(collector = %self.name, reason = %why, "spans are dropped");
            }
            (true, false) => tracing::info!(collector = %self.name, "spans are taken again"),
            _ => {}
        }
    }
}

/// Anything from 0 to 1.
fn some_share() -> f64 {
    let [byte] = random_id();
    f64::from(byte) / f64::from(u8::MAX)
}

/// Spans that wait at most: some 4 MiB.
const QUEUED_SPANS_MAX: usize = 4096;
/// Spans of one call.
const BATCH_SPANS: usize = 512;
/// How long a batch may fill.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// Tries of one batch.
const ATTEMPTS: u32 = 3;
/// Pause after the first of them, about, where the collector names none; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a collector may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_says_of_the_process_wins() {
        let told = [("service.name".to_owned(), "mine".to_owned()), ("a".into(), "b".into())];
        let all = described(&told);
        let of = |key: &str| all.iter().filter(|(name, _)| name == key).collect::<Vec<_>>();
        assert_eq!(of("service.name"), [&told[0]]);
        assert_eq!(of("a"), [&told[1]]);
        assert_eq!(of("service.version")[0].1, env!("CARGO_PKG_VERSION"));
        assert_eq!(of("service.instance.id").len(), 1);
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
