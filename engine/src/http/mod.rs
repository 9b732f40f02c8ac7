//! From socket to route and back.

/// One line a request, and its metrics.
pub mod access;

/// Request bodies, bounded.
pub mod body;

/// How many values a body has.
pub mod values;

/// Cross-origin requests.
pub mod cors;

/// Names that the server answers to.
pub mod hosts;

/// Static API keys.
pub mod keys;

/// Answers.
pub mod reply;

/// JSON as text in blocks.
pub mod json_text;

/// Content that is dropped when nobody takes it.
pub mod untaken;

/// `X-Request-Id`.
pub mod request_id;

/// Routes and how they are found.
pub mod route;

/// One request.
pub mod service;

/// Accepts connections.
pub mod server;

/// A socket with deadlines.
pub mod io;

/// Requests of a connection.
mod uses;

/// Server-sent events.
pub mod sse;
