//! What the data plane adds to its HTTP server: routes, keys, room for bodies, and the record of a
//! request. Sockets, bounds and answers are the crate `pagoda_http`'s.

/// One line a request, and its metrics.
pub mod access;

/// Request bodies, within a budget of memory.
pub mod body;

/// Who may call.
pub mod callers;

/// Static API keys.
pub mod keys;

/// Routes and how they are found.
pub mod route;

/// One request.
pub mod service;
