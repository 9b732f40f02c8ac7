//! One line a request, written when the request is over however it ends, and its metrics.
//!
//! An [`Access`] travels with the request: with the handler's future first, then with the
//! answer's body. Whoever drops it last ends the request. Holds no prompt, no output and no key.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use hyper::header::HeaderValue;
use pagoda_http::reply::Record;

use crate::metrics::HttpMetrics;
use crate::trace::Trace;
use crate::trace::record::Ended;

/// What a handler reports about the work behind an answer.
#[derive(Debug, Default)]
pub struct Tally {
    /// Tokens of the prompts.
    pub prompt_tokens: AtomicU32,
    /// Tokens generated so far.
    pub output_tokens: AtomicU32,
}

/// The record of a request that is still going on.
pub struct Access {
    id: Arc<str>,
    client: IpAddr,
    method: &'static str,
    route: &'static str,
    started: Instant,
    status: u16,
    complete: bool,
    is_probe: bool,
    tally: Arc<Tally>,
    metrics: Arc<HttpMetrics>,
    trace: Trace,
}

impl Access {
    /// Starts the record. `route` is the pattern of the table, never the client's path.
    pub fn begin(
        id: Arc<str>,
        client: IpAddr,
        method: &hyper::Method,
        metrics: Arc<HttpMetrics>,
        trace: Trace,
    ) -> Self {
        metrics.began();
        Access {
            id,
            client,
            method: known_method(method),
            route: UNKNOWN,
            started: Instant::now(),
            status: CLIENT_LEFT,
            complete: false,
            is_probe: false,
            tally: Arc::default(),
            metrics,
            trace,
        }
    }

    /// Names the route once it is found.
    pub fn set_route(&mut self, route: &'static str) {
        self.route = route;
    }

    /// Health checks and scrapes come every few seconds: their lines are for debugging.
    pub fn set_probe(&mut self) {
        self.is_probe = true;
    }

    /// Names the status once there is an answer.
    pub fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// Where the handler counts tokens.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// The trace that the request belongs to.
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// Value of `traceresponse`, where a span will tell of the request.
    pub fn trace_response(&self) -> Option<HeaderValue> {
        if self.is_probe { None } else { self.trace.response() }
    }
}

impl Record for Access {
    fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.metrics.finished(self.route, self.method, self.status, elapsed);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "pagoda::access",
                    id = &*self.id,
                    trace_id = self.trace.id(),
                    client = %self.client,
                    method = self.method,
                    route = self.route,
                    status = self.status,
                    prompt_tokens = self.tally.prompt_tokens.load(Ordering::Relaxed),
                    output_tokens = self.tally.output_tokens.load(Ordering::Relaxed),
                    ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                    complete = self.complete,
                    "request"
                )
            };
        }
        if self.is_probe {
            line!(debug);
            return;
        }
        line!(info);
        self.trace.end(&Ended {
            id: &self.id,
            method: (self.method != OTHER).then_some(self.method),
            route: (self.route != UNKNOWN).then_some(self.route),
            status: (self.status != CLIENT_LEFT).then_some(self.status),
            complete: self.complete,
        });
    }
}

/// Route of a path that nobody serves,
const UNKNOWN: &str = "unknown";
/// and a method that nobody knows.
const OTHER: &str = "other";
/// Logged when the client left before there was a status, as nginx does.
const CLIENT_LEFT: u16 = 499;

/// Metrics are never labelled by anything that a client chooses: other methods are one.
fn known_method(method: &hyper::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => OTHER,
    }
}
