//! Who is on the other side of a request.
//!
//! Addresses are in one form: IPv4 as such, also where a socket of IPv6 took the connection.

use std::net::IpAddr;

/// Whoever sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

impl Peer {
    /// The peer of a connection.
    pub fn new(address: IpAddr, is_tls: bool) -> Self {
        Peer { address: address.to_canonical(), is_tls }
    }
}
