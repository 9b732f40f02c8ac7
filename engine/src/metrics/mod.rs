//! Every metric: name, help, labels. One table; rendered as text by our own `/metrics` route.
//!
//! Labels are closed sets (model, route pattern, status, reason): never anything that a client
//! chooses. The recorder is a value, not a global, so that tests and instances do not mix.

/// The table: names, kinds, help texts, buckets and the names of vLLM.
pub mod table;

/// The same samples again under vLLM's names.
mod compat;

/// What an instance counts.
mod instance;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};

pub use instance::{InstanceMetrics, Outcome};
use table::{Kind, Metric, TABLE};

/// The registry of one process.
pub struct Metrics {
    recorder: PrometheusRecorder,
    vllm_names: bool,
}

impl Metrics {
    /// An empty registry. `vllm_names` adds vLLM's names beside ours.
    pub fn new(vllm_names: bool) -> Result<Arc<Self>, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in TABLE {
            if let Kind::Histogram(buckets) = metric.kind {
                let matcher = Matcher::Full(metric.name.to_string());
                builder = builder.set_buckets_for_metric(matcher, buckets)?;
            }
        }
        let recorder = builder.build_recorder();
        for metric in TABLE {
            let (name, help) =
                (KeyName::from_const_str(metric.name), SharedString::const_str(metric.help));
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
            }
        }
        let metrics = Metrics { recorder, vllm_names };
        let version = Label::from_static_parts("version", env!("CARGO_PKG_VERSION"));
        metrics.gauge("pagoda_build_info", vec![version]).set(1.0);
        Ok(Arc::new(metrics))
    }

    /// All metrics as Prometheus text, those that are read from instances at the end.
    pub fn render(&self, of_instances: &[InstanceSamples]) -> String {
        let mut own = self.recorder.handle().render();
        for Metric { name, kind, help, .. } in TABLE {
            let mut samples = of_instances.iter().filter(|of| of.metric == *name).peekable();
            if samples.peek().is_some() {
                let kind = kind.name();
                own.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            }
            samples.for_each(|of| own.push_str(&of.samples));
        }
        if self.vllm_names { compat::with_vllm_names(&own) } else { own }
    }

    /// Moves samples into buckets. Call every few seconds: samples are kept whole until then.
    pub fn run_upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    pub(crate) fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: Vec<Label>) -> metrics::Histogram {
        self.recorder.register_histogram(&Key::from_parts(name, labels), &METADATA)
    }
}

/// What an instance tells of a metric that no registry keeps.
pub struct InstanceSamples {
    /// Name of the metric, of the table.
    pub metric: &'static str,
    /// Its lines, each with its line end.
    pub samples: String,
}

static METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// What the network side counts.
pub struct HttpMetrics {
    metrics: Arc<Metrics>,
    in_flight: Gauge,
    active: AtomicUsize,
    /// Open connections.
    pub connections: Gauge,
    /// Fields that requests named and that we do not know.
    pub ignored_fields: Counter,
}

impl HttpMetrics {
    /// Registers them.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(HttpMetrics {
            in_flight: metrics.gauge("pagoda_http_requests_in_flight", Vec::new()),
            active: AtomicUsize::new(0),
            connections: metrics.gauge("pagoda_http_connections", Vec::new()),
            ignored_fields: metrics.counter("pagoda_ignored_fields_total", Vec::new()),
            metrics,
        })
    }

    /// A request has come.
    pub fn began(&self) {
        self.active.fetch_add(1, Relaxed);
        self.in_flight.increment(1.0);
    }

    /// Requests without an answer, or whose answer is still being sent.
    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// Counts a request that is over. `route` is a pattern of the route table.
    pub fn finished(
        &self,
        route: &'static str,
        method: &'static str,
        status: u16,
        elapsed: Duration,
    ) {
        self.active.fetch_sub(1, Relaxed);
        self.in_flight.decrement(1.0);
        let labels = vec![
            Label::from_static_parts("route", route),
            Label::from_static_parts("method", method),
            Label::new("status", status.to_string()),
        ];
        self.metrics.counter("pagoda_http_requests_total", labels).increment(1);
        let labels = vec![Label::from_static_parts("route", route)];
        self.metrics.histogram("pagoda_http_request_seconds", labels).record(elapsed);
    }
}

/// What becomes of spans.
#[derive(Clone, Debug)]
pub struct TraceMetrics {
    /// Taken by the collector.
    pub exported: Counter,
    /// Lost.
    pub dropped: Counter,
}

impl TraceMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        TraceMetrics {
            exported: metrics.counter("pagoda_trace_spans_exported_total", Vec::new()),
            dropped: metrics.counter("pagoda_trace_spans_dropped_total", Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_by_route_and_status() {
        let metrics = Metrics::new(false).unwrap();
        let http = HttpMetrics::new(metrics.clone());
        http.began();
        http.began();
        assert_eq!(http.active(), 2);
        http.finished("/v1/models/{id}", "GET", 404, Duration::from_millis(3));
        http.finished("/v1/models/{id}", "GET", 404, Duration::from_millis(3));
        let text = metrics.render(&[]);
        let line = "pagoda_http_requests_total{route=\"/v1/models/{id}\",method=\"GET\",\
                    status=\"404\"} 2";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("pagoda_build_info{version="), "{text}");
        assert!(text.contains("# TYPE pagoda_http_request_seconds histogram"), "{text}");
    }
}
