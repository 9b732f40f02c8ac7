//! What any HTTP server of Pagoda needs: the data plane's and the control plane's.
//!
//! The modules stand in the order in which a request meets them. A program gives an
//! [`server::Answer`] and gets every request with its [`peer::Peer`]; what it answers is sent within
//! bounds. Knows no route, no key, no error's shape and no model.

/// Bounds of sockets, heads and bodies.
pub mod limits;

/// Accepts connections.
pub mod server;

/// One connection, and the requests on it.
mod connection;

/// TLS on a listener.
pub mod tls;

/// A socket with deadlines.
mod io;

/// Requests of a connection.
mod uses;

/// Who is on the other side.
pub mod peer;

/// Proxies that may say for whom they speak.
pub mod proxies;

/// `X-Request-Id`.
pub mod request_id;

/// Paths, and which route one means.
pub mod path;

/// Names that the server answers to.
pub mod hosts;

/// Cross-origin requests.
pub mod cors;

/// Request bodies, bounded.
pub mod body;

/// How many values a body has.
pub mod values;

/// Answers.
pub mod reply;

/// Content that is dropped when nobody takes it.
mod untaken;

/// JSON as text in blocks.
pub mod json_text;

/// Server-sent events.
pub mod sse;
