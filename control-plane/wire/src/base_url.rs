//! Where an upstream is: a base URL read once, strictly, and the rule of which addresses may be
//! called.
//!
//! The control plane checks when one is saved, the data plane again when it connects, with every
//! address that the name resolved to; both read the same [`BaseUrl`], so no two parsers disagree.
//! Nothing here resolves a name or opens a socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Scheme, host, port and path; no user, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// Whether TLS is spoken.
    pub is_tls: bool,
    /// Where.
    pub host: Host,
    /// Explicit or the scheme's.
    pub port: u16,
    /// Begins with `/` unless it is empty; does not end with one.
    pub path: String,
}

/// A host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// In lower case. What it resolves to is known at each call only.
    Name(String),
    /// An address. Never IPv4 inside IPv6.
    Address(IpAddr),
}

/// Why a text is no base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// The scheme.
    #[error("a base URL begins with https:// or http://")]
    Scheme,
    /// A user, query or fragment, or a character that URLs are misread by.
    #[error("a base URL has a host, a port and a path of letters, digits and ./_~-, nothing else")]
    Form,
    /// The host.
    #[error("the host is no name and no address in its usual form")]
    Host,
    /// The port.
    #[error("the port is none")]
    Port,
}

/// Why nobody may call an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is inside some network.
    #[error("the address is not a public one, and no allowed network holds it")]
    Inside,
    /// A credential would travel readable.
    #[error("http:// is for allowed networks only: use https://")]
    Plain,
}

/// Addresses that upstreams may have: public ones, and those of networks that the operator allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    allowed: Vec<IpNet>,
}

impl BaseUrl {
    /// Reads a base URL. What has two readings has none.
    pub fn parse(text: &str) -> Result<Self, BaseUrlError> {
        if text.len() > LENGTH_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BaseUrlError::Form);
        }
        let (scheme, rest) = text.split_once("://").ok_or(BaseUrlError::Scheme)?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(BaseUrlError::Scheme),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => inner.split_once(']').ok_or(BaseUrlError::Host)?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let host = match authority.starts_with('[') {
            true => Host::Address(address(host.parse::<Ipv6Addr>().ok())?.to_canonical()),
            false => parse_host(host)?,
        };
        let port = parse_port(port, is_tls)?;
        Ok(BaseUrl { is_tls, host, port, path: parse_path(path)? })
    }

    /// What a credential is bound to: scheme, host and port.
    pub fn origin(&self) -> String {
        format!("{}://{}:{}", self.scheme(), self.host, self.port)
    }

    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.host)?;
        if self.port != standard_port(self.is_tls) {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl Reach {
    /// Public addresses and those of `allowed`.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Reach { allowed }
    }

    /// Whether a URL may be saved: all that is known before its name is resolved.
    pub fn check(&self, url: &BaseUrl) -> Result<(), Refused> {
        match &url.host {
            Host::Address(address) => self.check_address(url, *address),
            Host::Name(name) if name == "localhost" || name.ends_with(".localhost") => {
                self.check_address(url, Ipv4Addr::LOCALHOST.into())
            }
            Host::Name(_) if !url.is_tls && self.allowed.is_empty() => Err(Refused::Plain),
            Host::Name(_) => Ok(()),
        }
    }

    /// Whether `address` may be connected to for `url`. Asked for each address before each
    /// connection, and the connection goes to the address that was asked for.
    pub fn check_address(&self, url: &BaseUrl, address: IpAddr) -> Result<(), Refused> {
        let address = address.to_canonical();
        if self.allowed.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        match is_public(address) {
            false => Err(Refused::Inside),
            true if !url.is_tls => Err(Refused::Plain),
            true => Ok(()),
        }
    }
}

fn address<A: Into<IpAddr>>(parsed: Option<A>) -> Result<IpAddr, BaseUrlError> {
    parsed.map(Into::into).ok_or(BaseUrlError::Host)
}

/// A name, or an IPv4 address of four decimal numbers. Other writings of an address (`127.1`,
/// `0x7f000001`, `0177.0.0.1`) end in a number, too, as no name does.
fn parse_host(text: &str) -> Result<Host, BaseUrlError> {
    let text = text.to_ascii_lowercase();
    let last = text.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        return address(text.parse::<Ipv4Addr>().ok()).map(Host::Address);
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match text.len() <= 253 && text.split('.').all(is_label) {
        true => Ok(Host::Name(text)),
        false => Err(BaseUrlError::Host),
    }
}

/// `:443`, or nothing for the scheme's.
fn parse_port(text: &str, is_tls: bool) -> Result<u16, BaseUrlError> {
    let Some(digits) = text.strip_prefix(':') else {
        return if text.is_empty() { Ok(standard_port(is_tls)) } else { Err(BaseUrlError::Host) };
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    let port = digits.parse().ok().filter(|_| is_number);
    port.ok_or(BaseUrlError::Port)
}

fn standard_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

/// Segments that nobody decodes or walks up from.
fn parse_path(text: &str) -> Result<String, BaseUrlError> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let is_segment = |segment: &str| {
        !["", ".", ".."].contains(&segment)
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte))
    };
    match text.is_empty() || text.split('/').skip(1).all(is_segment) {
        true => Ok(text.into()),
        false => Err(BaseUrlError::Form),
    }
}

/// Whether an address is one of the internet's: none that IANA keeps for a special purpose.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => match translated(address) {
            Some(inner) => is_public(inner.into()),
            None => {
                GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|n| n.contains(&address))
            }
        },
    }
}

/// The IPv4 address behind a translator's prefix (64:ff9b::/96).
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    (bits >> 32 == 0x0064_ff9b << 64).then(|| Ipv4Addr::from_bits((bits & 0xffff_ffff) as u32))
}

/// Longer ones are a mistake or an attempt.
const LENGTH_MAX: usize = 2048;

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)
}

const fn v6(a: u16, b: u16, len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), len)
}

/// IANA's registry of special addresses, and the address at which one cloud tells a machine its
/// secrets though it looks public.
const SPECIAL_V4: &[Ipv4Net] = &[
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// All that is given out of IPv6 (2000::/3),
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

/// without tunnels, which lead anywhere, and addresses of documents.
const SPECIAL_V6: &[Ipv6Net] =
    &[v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> BaseUrl {
        BaseUrl::parse(text).unwrap()
    }

    #[test]
    fn the_usual_forms_are_read() {
        let openai = url("HTTPS://API.OpenAI.com/v1/");
        assert_eq!(openai.to_string(), "https://api.openai.com/v1");
        assert_eq!(openai.origin(), "https://api.openai.com:443");
        assert_eq!(url("https://api.openai.com:443").origin(), openai.origin());
        assert_ne!(url("http://api.openai.com:443").origin(), openai.origin());
        assert_eq!(url("http://10.1.2.3:8000/v1").to_string(), "http://10.1.2.3:8000/v1");
        assert_eq!(url("http://[2606:4700::1]:81").origin(), "http://[2606:4700::1]:81");
        assert_eq!(url("http://[::ffff:7f00:1]").origin(), "http://127.0.0.1:80");
    }

    #[test]
    fn attack_09_what_has_two_readings_has_none() {
        for wrong in [
            "",
            "api.openai.com",
            "ftp://a.b",
            "file:///etc/passwd",
            "gopher://127.0.0.1",
            "https://",
            "https:///v1",
            "https://user@host",
            "https://user:pass@host",
            "https://good.com@evil.com",
            "https://good.com\\@evil.com",
            "https://good.com#@evil.com",
            "https://good.com?@evil.com",
            "https://a.b/v1?x=1",
            "https://a.b/v1#x",
            "https://a.b//v1",
            "https://a.b/../v1",
            "https://a.b/%2e%2e/v1",
            "https://a.b/v1;x",
            "https://a.b:0",
            "https://a.b:65536",
            "https://a.b:+80",
            "https://a.b:",
            "https://a.b:80:90",
            "https://127.1",
            "https://2130706433",
            "https://0x7f000001",
            "https://0x7f.0.0.1",
            "https://0177.0.0.1",
            "https://127.0.0.01",
            "https://1.2.3.4.5",
            "https://256.1.1.1",
            "https://127.0.0.1.",
            "https://localhost.",
            "https://127。0。0。1",
            "https://①②⑦.⓪.⓪.①",
            "https://[::1",
            "https://[::1]x",
            "https://[fe80::1%eth0]",
            "https://[127.0.0.1]",
            "https://a b",
            "https://a\r\nHost: b",
            "https://a\0b",
            "https://-a.b",
            "https://a..b",
            "https://a%2eb",
        ] {
            assert!(BaseUrl::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn attack_09_no_address_inside_is_called_in_any_writing() {
        let reach = Reach::default();
        for inside in [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.0.0.192",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2001::1]",
            "[2001:db8::1]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[fc00::1]",
            "[ff02::1]",
        ] {
            let url = url(&format!("https://{inside}"));
            assert_eq!(reach.check(&url), Err(Refused::Inside), "{inside}");
        }
        for outside in ["1.1.1.1", "172.32.0.1", "[2606:4700::1111]", "[64:ff9b::101:101]"] {
            assert_eq!(reach.check(&url(&format!("https://{outside}"))), Ok(()), "{outside}");
        }
        for name in ["localhost", "LOCALHOST", "a.localhost"] {
            let url = url(&format!("https://{name}"));
            assert_eq!(reach.check(&url), Err(Refused::Inside), "{name}");
        }
    }

    #[test]
    fn attack_09_a_name_that_resolves_inside_is_refused_at_the_call() {
        let reach = Reach::default();
        let url = url("https://rebind.example");
        assert_eq!(reach.check(&url), Ok(()));
        // Two answers: the first may be called, the second may not.
        assert_eq!(reach.check_address(&url, [93, 184, 216, 34].into()), Ok(()));
        for answer in ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"] {
            let answer = answer.parse().unwrap();
            assert_eq!(reach.check_address(&url, answer), Err(Refused::Inside), "{answer}");
        }
    }

    #[test]
    fn an_operator_allows_networks_and_only_there_goes_plain_http() {
        let reach = Reach::new(vec!["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(reach.check(&url("http://10.1.2.3:8000")), Ok(()));
        assert_eq!(reach.check(&url("http://[::ffff:10.1.2.3]:8000")), Ok(()));
        assert_eq!(reach.check(&url("http://10.2.2.3:8000")), Err(Refused::Inside));
        assert_eq!(reach.check(&url("http://1.1.1.1")), Err(Refused::Plain));
        let name = url("http://engine.internal:8000");
        assert_eq!(reach.check(&name), Ok(()));
        assert_eq!(reach.check_address(&name, [10, 1, 9, 9].into()), Ok(()));
        assert_eq!(reach.check_address(&name, [1, 1, 1, 1].into()), Err(Refused::Plain));
        assert_eq!(Reach::default().check(&name), Err(Refused::Plain));
    }

    proptest! {
        #[test]
        fn what_is_read_reads_the_same_again(text in "https?://[a-z0-9.:\\[\\]/@#?%-]{0,40}") {
            if let Ok(url) = BaseUrl::parse(&text) {
                prop_assert_eq!(BaseUrl::parse(&url.to_string()), Ok(url.clone()));
                prop_assert_eq!(BaseUrl::parse(&url.origin()).unwrap().origin(), url.origin());
            }
        }
    }
}
