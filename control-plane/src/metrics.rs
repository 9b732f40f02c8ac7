//! What is counted. Labels are closed sets: route patterns, statuses, reasons; never a user or key.

use std::time::Duration;

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};

/// The registry of one process. A value, not a global, so that tests do not mix.
pub struct Metrics {
    recorder: PrometheusRecorder,
}

/// Seconds of requests: from a look-up to a password's hash.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

const REQUESTS: &str = "pagoda_control_http_requests_total";
const DURATION: &str = "pagoda_control_http_request_duration_seconds";
const CONNECTIONS: &str = "pagoda_control_http_connections";
const LOGINS_REFUSED: &str = "pagoda_control_logins_refused_total";
const POOL: &str = "pagoda_control_database_connections";

impl Metrics {
    /// An empty registry.
    pub fn new() -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new();
        let recorder = builder
            .set_buckets_for_metric(Matcher::Full(DURATION.into()), SECONDS)?
            .build_recorder();
        recorder.describe_counter(REQUESTS.into(), None, "Requests answered.".into());
        recorder.describe_histogram(DURATION.into(), None, "Time to an answer's head.".into());
        recorder.describe_counter(LOGINS_REFUSED.into(), None, "Logins refused.".into());
        recorder.describe_gauge(CONNECTIONS.into(), None, "Open connections.".into());
        recorder.describe_gauge(POOL.into(), None, "Connections to the database.".into());
        Ok(Metrics { recorder })
    }

    /// A request was answered. `route` is a pattern of the table, never a caller's path.
    pub fn answered(&self, route: &'static str, status: u16, time: Duration) {
        let route = Label::from_static_parts("route", route);
        let labels = vec![route.clone(), Label::new("status", status.to_string())];
        self.counter(REQUESTS, labels).increment(1);
        let key = Key::from_parts(DURATION, vec![route]);
        self.recorder.register_histogram(&key, &METADATA).record(time.as_secs_f64());
    }

    /// A login or a refresh was refused. `reason` is one of a closed list.
    pub fn login_refused(&self, reason: &'static str) {
        let labels = vec![Label::from_static_parts("reason", reason)];
        self.counter(LOGINS_REFUSED, labels).increment(1);
    }

    /// Shows how many connections are open.
    pub fn connections(&self) -> Gauge {
        self.recorder.register_gauge(&Key::from_name(CONNECTIONS), &METADATA)
    }

    /// As Prometheus reads it.
    pub fn render(&self, database: (usize, usize)) -> String {
        let (all, idle) = database;
        for (state, count) in [("idle", idle), ("busy", all.saturating_sub(idle))] {
            let key = Key::from_parts(POOL, vec![Label::from_static_parts("state", state)]);
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.recorder.register_gauge(&key, &METADATA).set(f64::from(count));
        }
        self.recorder.handle().render()
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);
