//! Bounds of what a connection may take: its head, its body, its time.
//!
//! Plain numbers, fixed for a listener's life. What the contents of a body may be is for the program
//! to bound.

use std::time::Duration;

/// Bounds of sockets, heads and bodies.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Open connections.
    pub connections_max: u32,
    /// Time for a TLS handshake, during which a connection counts as open.
    pub handshake_timeout: Duration,
    /// Bytes of a request head: line and headers.
    pub head_bytes_max: usize,
    /// Headers of a request.
    pub headers_max: usize,
    /// Time for a request head, and for an idle connection to bring the next one.
    pub head_timeout: Duration,
    /// Bytes of a request body.
    pub body_bytes_max: u64,
    /// Time for a request body.
    pub body_timeout: Duration,
    /// Time that a client may take none of the bytes that wait for it.
    pub write_timeout: Duration,
    /// Streams of one HTTP/2 connection.
    pub http2_streams_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 4096,
            handshake_timeout: Duration::from_secs(10),
            head_bytes_max: 64 << 10,
            headers_max: 100,
            // Longer than the 60 s that balancers keep idle connections.
            head_timeout: Duration::from_secs(65),
            body_bytes_max: 8 << 20,
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            http2_streams_max: 256,
        }
    }
}
