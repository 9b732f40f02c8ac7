//! A collector: where it is, what it is sent, and what its answers mean.
//!
//! One call after the other, over HTTP or HTTPS. Redirects are not followed, so that headers, which
//! may hold a key, go to the collector alone; neither they nor the address's own parts are ever told.

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Uri};
use serde_json::Value as Json;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::certificates::trusted;

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    url: Uri,
    headers: HeaderMap,
    certificate: Option<PathBuf>,
}

impl Collector {
    /// The collector at this base address, to whose path `/v1/traces` is added unless it ends so.
    pub fn at_base(url: &str) -> Result<Self, String> {
        let collector = Self::at(url)?;
        let base = collector.url.path().trim_end_matches('/');
        let base = base.strip_suffix(TRACES_PATH).unwrap_or(base);
        let mut parts = collector.url.clone().into_parts();
        let path = PathAndQuery::try_from(format!("{base}{TRACES_PATH}"));
        parts.path_and_query = Some(path.map_err(|error| error.to_string())?);
        let url = Uri::from_parts(parts).map_err(|error| error.to_string())?;
        Ok(Collector { url, ..collector })
    }

    /// The collector at this very address.
    pub fn at(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| NO_ADDRESS)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if !is_http || uri.host().is_none_or(str::is_empty) {
            return Err(NO_ADDRESS.into());
        }
        // What goes into logs shall hold no secret.
        if authority.contains('@') || uri.query().is_some() {
            return Err("must hold no name, password or query".into());
        }
        Ok(Collector { url: uri, headers: HeaderMap::new(), certificate: None })
    }

    /// With a header of each call.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, String> {
        let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
        let mut value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        self.headers.append(name, value);
        Ok(self)
    }

    /// Trusting the certificates in this file of PEM and no others.
    pub fn with_certificate(self, file: PathBuf) -> Self {
        Collector { certificate: Some(file), ..self }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.url.port_u16().unwrap_or_else(|| if self.is_https() { 443 } else { 80 })
    }

    fn is_https(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }

    fn is_loopback(&self) -> bool {
        let host = self.url.host().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

impl std::fmt::Display for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.url.fmt(f)
    }
}

const TRACES_PATH: &str = "/v1/traces";
const NO_ADDRESS: &str = "must be http://host:port or https://host:port, with a path at most";

/// The way to a collector.
#[derive(Debug)]
pub(super) struct Line {
    agent: Agent,
    collector: Collector,
}

/// What a collector says to a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Taken, but for a number of spans.
    Taken { rejected: u64, why: String },
    /// To be tried again, after some time if it names one.
    Later { wait: Option<Duration>, why: String },
    /// Never to be taken.
    Refused { why: String },
}

impl Line {
    /// Reads the certificates to trust; connects with the first call.
    pub(super) fn open(collector: Collector) -> Result<Self, String> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("pagoda/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(POST_TIME))
            .max_idle_age(IDLE_TIME);
        if collector.is_https() {
            let roots = match &collector.certificate {
                Some(file) => certificates_of(file)?,
                None => trusted(),
            };
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        // Proxies are for what is far away.
        if !collector.is_https() || collector.is_loopback() {
            config = config.proxy(None);
        }
        Ok(Line { agent: config.build().into(), collector })
    }

    /// One call. Blocks, for a bounded time.
    pub(super) fn post(&self, body: &[u8]) -> Answer {
        let mut request = Request::post(self.collector.url.clone());
        if let Some(headers) = request.headers_mut() {
            *headers = self.collector.headers.clone();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let sent = match request.body(body) {
            Ok(request) => self.agent.run(request),
            Err(error) => return Answer::Refused { why: error.to_string() },
        };
        let (parts, mut body) = match sent {
            Ok(answer) => answer.into_parts(),
            Err(error) => return Answer::Later { wait: None, why: error.to_string() },
        };
        let said = said_in(&mut body);
        let status = parts.status;
        if status.is_success() {
            let partial = said.get("partialSuccess").unwrap_or(&Json::Null);
            let rejected = partial.get("rejectedSpans").and_then(count_of).unwrap_or(0);
            return Answer::Taken { rejected, why: told("it rejected some", partial) };
        }
        let why = told(&format!("it answered {status}"), &said);
        if !matches!(status.as_u16(), 429 | 502..=504) {
            return Answer::Refused { why };
        }
        let wait = parts.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let seconds = wait.and_then(|text| text.trim().parse().ok());
        Answer::Later { wait: seconds.map(Duration::from_secs), why }
    }
}

/// The certificates of a file.
fn certificates_of(file: &std::path::Path) -> Result<RootCerts, String> {
    let unusable = |why: &str| format!("cannot use the certificates of {}: {why}", file.display());
    let text = std::fs::read(file).map_err(|error| unusable(&error.to_string()))?;
    let mut found: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| unusable(&e.to_string()))? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err(unusable("it holds none")) } else { Ok(RootCerts::from(found)) }
}

/// An answer's JSON; null where it is something else.
fn said_in(body: &mut Body) -> Json {
    let bytes = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or(Json::Null)
}

/// A number of 64 bits: text in OTLP's JSON, and a number in some collectors'.
fn count_of(value: &Json) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// `what`, and behind it the collector's own words, bounded and printable.
fn told(what: &str, said: &Json) -> String {
    let words = said.get("errorMessage").or_else(|| said.get("message")).and_then(Json::as_str);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let words: String = words.unwrap_or_default().chars().take(WORDS_MAX).map(plain).collect();
    if words.is_empty() { what.into() } else { format!("{what}: {words}") }
}

/// How long one call may take.
const POST_TIME: Duration = Duration::from_secs(5);
/// How long a connection waits for the next batch: less than collectors keep idle ones.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Characters of a collector's that are told.
const WORDS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_its_base_or_in_full() {
        for (url, port, want) in [
            ("http://localhost:4318", 4318, "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", 4318, "http://localhost:4318/v1/traces"),
            ("http://10.0.0.1:4318/v1/traces", 4318, "http://10.0.0.1:4318/v1/traces"),
            ("http://otel/base/", 80, "http://otel/base/v1/traces"),
            ("https://otel.example", 443, "https://otel.example/v1/traces"),
            ("http://[::1]:4318", 4318, "http://[::1]:4318/v1/traces"),
        ] {
            let collector = Collector::at_base(url).unwrap();
            assert_eq!((collector.to_string().as_str(), collector.port()), (want, port));
        }
        for (url, want) in [("http://a/x", "http://a/x"), ("https://a", "https://a/")] {
            assert_eq!(Collector::at(url).unwrap().to_string(), want);
        }
        for wrong in [
            "",
            "localhost:4318",
            "ftp://otel",
            "grpc://otel:4317",
            "http://",
            "http:///v1/traces",
            "http://me:key@otel/",
            "https://otel/?api-key=secret",
        ] {
            let refused = Collector::at_base(wrong).unwrap_err();
            assert!(!refused.contains("key@") && !refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let collector = Collector::at("https://otel").unwrap();
        let collector = collector.with_header("api-key", "a-secret").unwrap();
        assert!(!format!("{collector:?} {collector}").contains("a-secret"));
        let plain = Collector::at("https://otel").unwrap();
        let error = plain.with_header("api-key", "a-secret\n").unwrap_err();
        assert!(!error.contains("a-secret"), "{error}");
    }

    #[test]
    fn certificates_come_from_a_file_that_holds_some() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let open =
            || Line::open(Collector::at("https://a").unwrap().with_certificate(file.clone()));
        assert!(open().unwrap_err().contains("ca.pem"));
        std::fs::write(&file, "nothing").unwrap();
        assert!(open().unwrap_err().contains("holds none"));
    }
}
