//! Requests to the hub: where they go, what they carry, and what answers mean.
//!
//! Redirects are followed here, hop by hop, so that the token goes to the hub alone: large files
//! come from other hosts, at addresses that are signed for us and are never told.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::digest::Digest;
use super::error::HubError;
use super::id::{ModelId, Revision};
use super::listing::{Content, Listing};
use super::patience::{Failure, Patience};
use crate::certificates::trusted;
use crate::config::hub::HubSettings;
use crate::model::files::read_bounded;

/// The hub, over the network.
pub(super) struct Remote {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<HeaderValue>,
}

/// What a request is about.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The model.
    pub(super) id: &'a ModelId,
    /// Which one of it.
    pub(super) revision: &'a Revision,
    /// One of its files, or all.
    pub(super) file: Option<&'a str>,
}

/// An answer of success, or one that says all there is to know.
struct Answer {
    response: Response<Body>,
    /// Who gave it, for messages.
    host: String,
}

impl Remote {
    /// The hub of the settings.
    pub(super) fn new(settings: &HubSettings, patience: &Patience) -> Result<Self, HubError> {
        let refuse = |reason: &str| HubError::Setting {
            setting: "HF_ENDPOINT",
            reason: format!("{reason}; an address looks like https://huggingface.co"),
        };
        let uri: Uri = settings.endpoint.parse().map_err(|_| refuse("is no address"))?;
        let origin = Origin::of(&uri).ok_or_else(|| refuse("is no http or https address"))?;
        if settings.endpoint.contains(['@', '?', '#']) {
            return Err(refuse("must not hold a name, a password or a query"));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("pagoda/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.stall))
            .timeout_per_read(Some(patience.stall))
            .tls_config(TlsConfig::builder().root_certs(trusted()).build())
            .build();
        let token = token(settings)?;
        let endpoint = settings.endpoint.clone();
        Ok(Remote { agent: config.into(), endpoint, origin, token })
    }

    /// Who is asked, for messages.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The files of a revision.
    pub(super) fn listing(&self, asked: Asked<'_>) -> Result<Listing, Failure> {
        let Asked { id, revision, .. } = asked;
        let revision = encoded(revision.as_str());
        let url = format!("{}/api/models/{id}/revision/{revision}?blobs=true", self.endpoint);
        let Answer { response, host } = self.ask(asked, Method::GET, &url, 0)?;
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(LISTING_BYTES_MAX + 1);
        let read = body.read_to_end(&mut bytes);
        read.map_err(|error| Failure::passing(format!("{host}: {error}")))?;
        if bytes.len() as u64 > LISTING_BYTES_MAX {
            return Err(self.senseless(asked, "its list of files is too long").into());
        }
        let listing = Listing::parse(&bytes).map_err(|why| self.senseless(asked, &why))?;
        if asked.revision.as_commit().is_some_and(|commit| commit != listing.commit) {
            return Err(self.senseless(asked, "its list is that of another commit").into());
        }
        Ok(listing)
    }

    /// Size and checksum of a file whose list says neither.
    pub(super) fn content(&self, asked: Asked<'_>, commit: &str) -> Result<Content, Failure> {
        let url = self.address(asked, commit);
        let Answer { response, .. } = self.ask(asked, Method::HEAD, &url, 0)?;
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let tag = text("x-linked-etag").or_else(|| text(ETAG.as_str()));
        let size = text("x-linked-size").or_else(|| text(CONTENT_LENGTH.as_str()));
        let digest = tag.and_then(Digest::parse);
        let size = size.and_then(|size| size.parse().ok());
        let content = size.zip(digest).map(|(size, digest)| Content { size, digest });
        let none = "it tells no size and checksum, so what it sends could not be trusted";
        Ok(content.ok_or_else(|| self.senseless(asked, none))?)
    }

    /// The bytes of a file from `start` on, and the place at which they really begin.
    pub(super) fn bytes(
        &self,
        asked: Asked<'_>,
        commit: &str,
        start: u64,
    ) -> Result<(u64, impl Read + use<>), Failure> {
        let url = self.address(asked, commit);
        let Answer { response, host } = self.ask(asked, Method::GET, &url, start)?;
        let (begins, limit) = match response.status().as_u16() {
            206 => (range_start(response.headers()), u64::MAX),
            // There is no such part: nothing comes, and whoever asked begins anew.
            NO_SUCH_PART => (Some(0), 0),
            _ => (Some(0), u64::MAX),
        };
        let begins = begins.filter(|begins| *begins == start || *begins == 0);
        let begins = begins.ok_or_else(|| {
            Failure::passing(format!("{host} sends other bytes than those asked for"))
        })?;
        Ok((begins, response.into_body().into_reader().take(limit)))
    }

    fn address(&self, asked: Asked<'_>, commit: &str) -> String {
        let file = encoded(asked.file.unwrap_or_default());
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, asked.id)
    }

    /// Asks, goes where it is sent, and comes back with an answer of success. Of HEAD also with a
    /// redirect that says all there is to know.
    fn ask(
        &self,
        asked: Asked<'_>,
        method: Method,
        url: &str,
        start: u64,
    ) -> Result<Answer, Failure> {
        let senseless = |why: &str| Failure::Final(self.senseless(asked, why));
        let mut uri: Uri = url.parse().map_err(|_| senseless("it has no address"))?;
        for _ in 0..REDIRECTS_MAX {
            let host = uri.host().unwrap_or_default().to_owned();
            let response = self.send(&method, &uri, start).map_err(|error| {
                let why = match error {
                    // A certificate that is not trusted, or no TLS at all: it will not pass.
                    ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
                        let (host, why) = (host.clone(), error.to_string());
                        return Failure::Final(HubError::Untrusted { host, why });
                    }
                    ureq::Error::Io(error) => error.to_string(),
                    // Holds an address.
                    ureq::Error::BadUri(_) => return senseless("its address cannot be used"),
                    error => error.to_string(),
                };
                Failure::passing(format!("{host}: {why}"))
            })?;
            let status = response.status();
            let knows = method == Method::HEAD && response.headers().contains_key("x-linked-etag");
            let no_part = start > 0 && status.as_u16() == NO_SUCH_PART;
            if status.is_success() || no_part || (status.is_redirection() && knows) {
                return Ok(Answer { response, host });
            }
            if !status.is_redirection() {
                let of_hub = Origin::of(&uri).as_ref() == Some(&self.origin);
                return Err(self.refusal(asked, of_hub, &host, &response));
            }
            uri = next(&uri, response.headers()).map_err(senseless)?;
        }
        Err(senseless("it sends from one address to the next"))
    }

    /// One request. The token is for the hub alone.
    fn send(&self, method: &Method, uri: &Uri, start: u64) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(method.clone()).uri(uri.clone());
        request = request.header(ACCEPT_ENCODING, "identity");
        let origin = Origin::of(uri);
        if let Some(token) = self.token.as_ref().filter(|_| origin.as_ref() == Some(&self.origin)) {
            request = request.header(AUTHORIZATION, token.clone());
        }
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let request = request.body(())?;
        // A proxy of the environment is for what is not on this machine.
        if origin.is_some_and(|origin| origin.is_loopback()) {
            return self.agent.run(self.agent.configure_request(request).proxy(None).build());
        }
        self.agent.run(request)
    }

    /// What an answer that is neither success nor redirect means.
    fn refusal(
        &self,
        asked: Asked<'_>,
        of_hub: bool,
        host: &str,
        response: &Response<Body>,
    ) -> Failure {
        let status = response.status().as_u16();
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let code = text("x-error-code").unwrap_or_default();
        let (id, hub) = (asked.id.to_string(), self.endpoint.clone());
        let has_token = self.token.is_some();
        let error = match (status, code) {
            // The time of a signed address is over, perhaps: the next try gets another one.
            _ if !of_hub => return Failure::passing(format!("{host} answers {status}")),
            (408 | 425 | 429 | 500..=599, _) => {
                let seconds = text(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
                let wait = seconds.map(Duration::from_secs);
                return Failure::Passing { why: format!("{host} answers {status}"), wait };
            }
            (401 | 403, "GatedRepo") => HubError::Gated { id, hub, has_token },
            (403, _) => HubError::Forbidden { id, hub, has_token },
            (401, "") if has_token => HubError::Token { id, hub },
            (404, "RevisionNotFound") => {
                HubError::NoRevision { id, revision: asked.revision.to_string(), hub }
            }
            (401 | 404, _) => match asked.file {
                Some(file) if status == 404 && code != "RepoNotFound" => {
                    HubError::NoFile { id, file: file.to_owned() }
                }
                _ => HubError::NoModel { id, hub, has_token },
            },
            _ => self.senseless(asked, &format!("it answers {status}")),
        };
        Failure::Final(error)
    }

    fn senseless(&self, asked: Asked<'_>, why: &str) -> HubError {
        let what = match asked.file {
            Some(file) => format!("{file} of {}", asked.id),
            None => asked.id.to_string(),
        };
        HubError::Answer { hub: self.endpoint.clone(), what, why: why.to_owned() }
    }
}

/// Status of a range beyond the end.
const NO_SUCH_PART: u16 = 416;

/// Hops from the hub to a file's bytes.
const REDIRECTS_MAX: usize = 6;

/// Real ones have some forty.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// A list of a hundred thousand files.
const LISTING_BYTES_MAX: u64 = 32 << 20;

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let is_https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some(Origin { is_https, host, port })
    }

    fn is_loopback(&self) -> bool {
        let bare = self.host.trim_matches(['[', ']']);
        bare == "localhost" || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

/// Where an answer sends us: to a place on the same host, or anywhere that is as safe.
fn next(from: &Uri, headers: &HeaderMap) -> Result<Uri, &'static str> {
    let place = headers.get(LOCATION).and_then(|place| place.to_str().ok());
    let place = place.ok_or("it sends us nowhere")?;
    let whole = match (place.starts_with('/'), place.starts_with("//")) {
        (_, true) => format!("{}:{place}", from.scheme_str().unwrap_or_default()),
        (true, false) => {
            let authority = from.authority().map(ToString::to_string).unwrap_or_default();
            format!("{}://{authority}{place}", from.scheme_str().unwrap_or_default())
        }
        (false, false) => place.to_owned(),
    };
    let uri: Uri = whole.parse().map_err(|_| "it sends us to what is no address")?;
    let origin = Origin::of(&uri).ok_or("it sends us to what is no address")?;
    if from.scheme_str() == Some("https") && !origin.is_https {
        return Err("it sends us from https to http");
    }
    Ok(uri)
}

/// Where the bytes of a partial answer begin.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The header that tells who asks.
fn token(settings: &HubSettings) -> Result<Option<HeaderValue>, HubError> {
    let of_file = || {
        let bytes = read_bounded(settings.token_file.as_ref()?, TOKEN_BYTES_MAX).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let Some(token) = settings.token.clone().or_else(of_file) else { return Ok(None) };
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
        let reason = "holds what no token holds".to_owned();
        HubError::Setting { setting: "HF_TOKEN", reason }
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A part of an address: whatever is no plain character becomes its bytes.
fn encoded(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_stays_safe() {
        let to = |from: &str, place: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, place.parse().unwrap());
            next(&from.parse().unwrap(), &headers).map(|uri| uri.to_string())
        };
        assert_eq!(to("https://a/b?c", "/d?e").unwrap(), "https://a/d?e");
        assert_eq!(to("https://a:1/b", "/d").unwrap(), "https://a:1/d");
        assert_eq!(to("https://a/b", "https://c/d").unwrap(), "https://c/d");
        assert_eq!(to("http://a/b", "//c/d").unwrap(), "http://c/d");
        for bad in ["http://a/b", "ftp://a/b", "d", "file:///etc/passwd", ""] {
            assert!(to("https://a/b", bad).is_err(), "{bad}");
        }
        assert!(next(&"https://a/b".parse().unwrap(), &HeaderMap::new()).is_err());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |uri: &str| Origin::of(&uri.parse().unwrap());
        assert_eq!(of("https://Hub.co/x"), of("https://hub.co:443/y"));
        for other in ["http://hub.co", "https://hub.co:444", "https://hub.co.evil", "https://x"] {
            assert_ne!(of("https://hub.co"), of(other), "{other}");
        }
        assert_ne!(of("https://hub.co"), of("https://hub.co@evil.org/"));
        assert!(of("http://127.0.0.1:1").unwrap().is_loopback());
        assert!(of("http://[::1]:1").unwrap().is_loopback());
        assert!(!of("http://10.0.0.1").unwrap().is_loopback());
    }

    #[test]
    fn a_part_of_an_address_is_one() {
        assert_eq!(encoded("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b?c#d%é.json"), "a%20b%3Fc%23d%25%C3%A9.json");
    }
}
