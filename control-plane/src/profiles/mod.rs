//! What one contract calls it: a folder a profile, a line each in [`FACES`].
//!
//! Routes, names, envelopes and errors of the documents; each handler calls one operation.

/// Health, readiness, version and metrics: the listener's own.
pub mod listener;

/// What data planes ask for.
pub mod internal;

/// Waiting for data planes to know of a write.
pub mod settle;

/// The enterprise platform's contract.
pub mod enterprise;

/// StellarByte's contract.
pub mod stellarbyte;

#[cfg(test)]
mod site;

use crate::http::route::{Face, Own};

/// Routes of no profile.
pub static OWN: Own = (&listener::FACE, &[&internal::FACE]);

/// All profiles; each is mounted under `/profiles/<name>`.
pub static FACES: &[&Face] = &[&enterprise::FACE, &stellarbyte::FACE];
