//! Proxies that are trusted to say for whom they speak.
//!
//! Only where the connection's own peer is one of them are `X-Forwarded-For` and
//! `X-Forwarded-Proto` read, since anybody else may write what they like; and of the addresses only
//! those that trusted proxies added, from the right on. Whatever cannot be read leaves the peer as
//! it is.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::HeaderName;
use ipnet::{IpNet, Ipv4Net};

use crate::peer::Peer;

/// Addresses and networks of proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
}

/// Something is no address and no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no address or network as in 10.0.0.0/8")]
pub struct NoNetwork(String);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

impl TrustedProxies {
    /// Proxies by address or network (`10.0.0.0/8`, `::1`). None at all trusts nobody.
    pub fn new<T: AsRef<str>>(written: &[T]) -> Result<Self, NoNetwork> {
        let networks = written.iter().map(|text| network(text.as_ref().trim()));
        Ok(TrustedProxies { networks: networks.collect::<Result<_, _>>()? })
    }

    /// Whoever sent a request with these headers on a connection from `connected`.
    pub fn sender(&self, connected: Peer, headers: &HeaderMap) -> Peer {
        if !self.trusts(connected.address) {
            return connected;
        }
        Peer {
            address: self.forwarded_for(headers).unwrap_or(connected.address),
            is_tls: forwarded_proto(headers).unwrap_or(connected.is_tls),
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The first address from the right that is no proxy's, or the leftmost if all are.
    fn forwarded_for(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut found = None;
        for line in headers.get_all(FORWARDED_FOR).iter().rev() {
            for word in line.to_str().ok()?.rsplit(',') {
                let address = address(word.trim_matches([' ', '\t']))?;
                if !self.trusts(address) {
                    return Some(address);
                }
                found = Some(address);
            }
        }
        found
    }
}

/// What all proxies agree on.
fn forwarded_proto(headers: &HeaderMap) -> Option<bool> {
    let mut found = None;
    for line in headers.get_all(FORWARDED_PROTO) {
        for word in line.to_str().ok()?.split(',') {
            let is_tls = match word.trim_matches([' ', '\t']) {
                word if word.eq_ignore_ascii_case("https") => true,
                word if word.eq_ignore_ascii_case("http") => false,
                _ => return None,
            };
            if found.is_some_and(|before| before != is_tls) {
                return None;
            }
            found = Some(is_tls);
        }
    }
    found
}

/// An address, to which some proxies add a port.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>();
    let address = address.or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// Networks of IPv4 that are written as parts of IPv6 are meant as what they are: so are addresses.
fn network(text: &str) -> Result<IpNet, NoNetwork> {
    let wrong = || NoNetwork(text.chars().take(64).collect());
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| wrong())?,
    };
    let IpNet::V6(long) = network else { return Ok(network) };
    match (long.addr().to_ipv4_mapped(), long.prefix_len().checked_sub(96)) {
        (Some(short), Some(len)) => Ok(Ipv4Net::new(short, len).map_err(|_| wrong())?.into()),
        _ => Ok(network),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn trusting(networks: &[&str]) -> TrustedProxies {
        TrustedProxies::new(networks).unwrap()
    }

    fn sender(proxies: &TrustedProxies, from: &str, lines: &[&str], proto: &[&str]) -> Peer {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        for line in proto {
            headers.append(FORWARDED_PROTO, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        proxies.sender(Peer::new(from.parse().unwrap(), false), &headers)
    }

    #[test]
    fn only_what_trusted_proxies_added_is_believed() {
        let proxies = trusting(&["10.0.0.0/8", "::1", "::ffff:192.168.0.0/112"]);
        let address = |from, lines: &[&str]| sender(&proxies, from, lines, &[]).address.to_string();
        assert_eq!(address("10.1.1.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(address("::ffff:10.1.1.1", &["::ffff:1.2.3.4"]), "1.2.3.4");
        assert_eq!(address("::1", &["6.6.6.6, 1.2.3.4,10.9.9.9", "192.168.0.7"]), "1.2.3.4");
        assert_eq!(address("10.1.1.1", &["10.3.3.3, 10.2.2.2"]), "10.3.3.3");
        assert_eq!(address("10.1.1.1", &["6.6.6.6, 1.2.3.4:5678"]), "1.2.3.4");
        assert_eq!(address("10.1.1.1", &["[2001:db8::7]:443"]), "2001:db8::7");
        assert_eq!(address("10.1.1.1", &["nonsense, 1.2.3.4"]), "1.2.3.4", "who wrote that?");
        for (from, lines) in [
            ("11.0.0.1", &["1.2.3.4"][..]),
            ("::2", &["1.2.3.4"]),
            ("10.1.1.1", &[]),
            ("10.1.1.1", &[""]),
            ("10.1.1.1", &["1.2.3.4, "]),
            ("10.1.1.1", &["1.2.3.4, unknown"]),
            ("10.1.1.1", &["1.2.3.4, _hidden, 10.2.2.2"]),
            ("10.1.1.1", &["1.2.3.4", "1.2.3"]),
            ("10.1.1.1", &["1.2.3.4 5.6.7.8"]),
            ("10.1.1.1", &["[2001:db8::7]"]),
            ("10.1.1.1", &["ü"]),
        ] {
            assert_eq!(address(from, lines), from, "{lines:?}");
        }
        assert_eq!(
            sender(&trusting(&[]), "10.1.1.1", &["1.2.3.4"], &[]).address.to_string(),
            "10.1.1.1"
        );
    }

    #[test]
    fn what_was_spoken_to_a_trusted_proxy_is_believed_if_all_agree() {
        let proxies = trusting(&["10.0.0.0/8"]);
        let is_tls = |from, proto: &[&str]| sender(&proxies, from, &[], proto).is_tls;
        assert!(is_tls("10.1.1.1", &["https"]) && is_tls("10.1.1.1", &["HTTPS, https", "https"]));
        assert!(!is_tls("11.1.1.1", &["https"]));
        for proto in [&["http"][..], &["https, http"], &["https", ""], &["wss"], &[]] {
            assert!(!is_tls("10.1.1.1", proto), "{proto:?}");
        }
    }

    #[test]
    fn what_is_no_network_is_told() {
        for wrong in ["", "10.0.0.0/33", "10.0.0", "proxy.example", "::1/129", "10.0.0.0/8/8"] {
            assert_eq!(TrustedProxies::new(&[wrong]), Err(NoNetwork(wrong.into())));
        }
        assert!(TrustedProxies::new(&[" 10.0.0.0/8 ", "fd00::/8"]).is_ok());
    }

    /// Clients, and proxies in 10/8 or fd00::/8, in both forms of IPv4.
    fn any_address() -> impl Strategy<Value = IpAddr> {
        let short = (prop_oneof![Just(10_u8), Just(9), any::<u8>()], any::<[u8; 3]>())
            .prop_map(|(first, [a, b, c])| Ipv4Addr::new(first, a, b, c));
        let long = (prop_oneof![Just(0xfd_u8), any::<u8>()], any::<[u8; 15]>()).prop_map(
            |(first, rest)| {
                let mut bytes = [first; 16];
                bytes[1..].copy_from_slice(&rest);
                IpAddr::V6(Ipv6Addr::from(bytes))
            },
        );
        prop_oneof![
            short.clone().prop_map(IpAddr::V4),
            short.prop_map(|short| IpAddr::V6(short.to_ipv6_mapped())),
            long,
        ]
    }

    fn is_proxy(address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(short) => short.octets()[0] == 10,
            IpAddr::V6(long) => long.octets()[0] == 0xfd,
        }
    }

    proptest! {
        /// Against a plain reading of the rule, with the list cut into lines anywhere.
        #[test]
        fn the_sender_is_the_last_who_is_no_proxy(
            from in any_address(),
            listed in prop::collection::vec((any_address(), any::<bool>()), 0..6),
        ) {
            let proxies = trusting(&["10.0.0.0/8", "fd00::/8"]);
            let (mut lines, mut all) = (Vec::<String>::new(), vec![from]);
            for (address, is_new_line) in listed.iter().rev() {
                all.push(*address);
                match lines.last_mut() {
                    Some(line) if !is_new_line => *line = format!("{address}, {line}"),
                    _ => lines.push(address.to_string()),
                }
            }
            lines.reverse();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let last = all.iter().find(|address| !is_proxy(**address)).or_else(|| all.last());
            let found = sender(&proxies, &from.to_string(), &lines, &[]).address;
            prop_assert_eq!(Some(found), last.map(IpAddr::to_canonical));
        }

        /// Whoever is no proxy is who it is, whatever it writes; a proxy's word is an address or nothing.
        #[test]
        fn no_text_makes_anybody_else(from in any_address(), text in "[0-9a-f.:,\\[\\] %]{0,40}") {
            let proxies = trusting(&["10.0.0.0/8", "fd00::/8"]);
            let found = sender(&proxies, &from.to_string(), &[&text], &[&text]);
            if !is_proxy(from) {
                prop_assert_eq!(found, Peer::new(from, false));
            }
            prop_assert_eq!(found.address, found.address.to_canonical());
        }
    }
}
