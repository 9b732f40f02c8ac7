//! Names that a server on loopback answers to while it asks for no key.
//!
//! A page on the web can let its own name point to 127.0.0.1 and then call the server as if it were its
//! own ("DNS rebinding"): neither CORS nor the type of a body stops that, because to the browser the
//! origin is the same. What gives it away is the name. Decides by the host alone, never by the port.

use std::net::{IpAddr, SocketAddr};

use hyper::header::HOST;
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Uri};

/// Whether a caller's name for the server is one that the web cannot have chosen.
#[derive(Clone, Debug)]
pub struct Hosts {
    is_loopback: bool,
    any: bool,
    allowed: Vec<String>,
}

impl Hosts {
    /// Rules of a listener. Hosts of `origins`, whose pages may call, are known by name.
    pub fn of(listener: SocketAddr, origins: &[String]) -> Self {
        Hosts {
            is_loopback: listener.ip().is_loopback(),
            any: origins.iter().any(|origin| origin == "*"),
            allowed: origins.iter().filter_map(|origin| host_of_origin(origin)).collect(),
        }
    }

    /// False for a name that somebody else may have let point here. A listener on other addresses is
    /// meant to be known by names that we do not know.
    pub fn allow(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        if !self.is_loopback || self.any {
            return true;
        }
        let named = match (uri.authority(), headers.get(HOST)) {
            (Some(authority), _) => Some(authority.clone()),
            (None, Some(value)) => value.to_str().ok().and_then(|text| text.parse().ok()),
            // Browsers always send one.
            (None, None) => return true,
        };
        named.as_ref().map(Authority::host).is_some_and(|host| self.is_known(host))
    }

    fn is_known(&self, host: &str) -> bool {
        let plain = host.trim_end_matches('.').to_ascii_lowercase();
        let is_address = plain.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        // Public names have a dot; those under these ends are no public names.
        let is_local = !plain.contains('.') || LOCAL_ENDS.iter().any(|end| plain.ends_with(end));
        is_address || is_local || self.allowed.contains(&plain)
    }
}

/// Ends of names that no public name has.
const LOCAL_ENDS: [&str; 3] = [".localhost", ".local", ".internal"];

fn host_of_origin(origin: &str) -> Option<String> {
    let uri: Uri = origin.parse().ok()?;
    uri.host().map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn is_refused(hosts: &Hosts, host: &'static str) -> bool {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
        !hosts.allow(&Uri::from_static("/v1/models"), &headers)
    }

    fn on(address: &str, origins: &[&str]) -> Hosts {
        let origins: Vec<_> = origins.iter().map(ToString::to_string).collect();
        Hosts::of(address.parse().unwrap(), &origins)
    }

    #[test]
    fn a_public_name_for_loopback_is_refused() {
        let hosts = on("127.0.0.1:8000", &["https://chat.example:8443"]);
        let evil = ["evil.example", "evil.example:8000", "EVIL.example.", "127.0.0.1.evil.example"];
        for host in evil.into_iter().chain(["a b", "", "localhost.evil.example", "1.2.3.4.5"]) {
            assert!(is_refused(&hosts, host), "{host}");
        }
        let own =
            ["localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "box", "box.local"];
        for host in own.into_iter().chain(["app.localhost", "10.0.0.7", "Chat.example", "x:1"]) {
            assert!(!is_refused(&hosts, host), "{host}");
        }
    }

    #[test]
    fn the_name_of_a_request_over_http2_is_in_its_target() {
        let hosts = on("[::1]:8000", &[]);
        let allow = |uri| hosts.allow(&Uri::from_static(uri), &HeaderMap::new());
        assert!(!allow("http://evil.example/v1/models"));
        assert!(allow("http://localhost:8000/v1/models") && allow("/v1/models"));
    }

    #[test]
    fn other_listeners_and_open_lists_ask_for_no_name() {
        assert!(!is_refused(&on("0.0.0.0:8000", &[]), "evil.example"));
        assert!(!is_refused(&on("127.0.0.1:8000", &["*"]), "evil.example"));
    }
}
