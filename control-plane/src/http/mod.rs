//! From socket to route and back: pagoda-http's server over one static table of routes.
//!
//! The route that is found decides about the credential and the handler alike. Knows no operation.

/// One request on its way into a route, and what it may read of it.
pub mod call;

/// The credential of a request.
pub mod credential;

/// What each face offers, and which route a request means.
pub mod route;

/// One request.
pub mod service;
