//! What travels between the control plane and the data planes: credentials, the snapshot that data
//! planes serve from, the numbered batches of usage that they send back, and leases of limits.
//!
//! Plain data and the cryptography on it. Knows no database, no socket and no profile, and does no
//! I/O: a data plane authenticates a request with nothing but this crate and its snapshot.

/// API keys.
pub mod api_key;

/// Where an upstream is, and which addresses may be called.
pub mod base_url;

/// Batches of what data planes did.
pub mod batch;

/// Credentials of upstreams.
pub mod credential;

/// Who calls.
pub mod gate;

/// What one data plane knows now.
pub mod known;

/// Slices of limits and budgets.
pub mod lease;

/// What seals a line, so that nobody else can have written it.
pub mod seal;

/// Bytes that must not be shown.
pub mod secret;

/// What data planes know.
pub mod snapshot;

/// Access tokens.
pub mod token;

/// What only planes can read.
pub mod vault;
