//! The enterprise platform's contract: users, keys, models and login, in one envelope.
//!
//! Answers are `{"code", "message", "data"}`; a number other than 0 says what went wrong.

/// The envelope, and the numbers of what went wrong.
pub mod envelope;

use crate::http::route::{Face, Route};

/// The profile.
pub static FACE: Face = Face { name: "enterprise", routes: ROUTES, fault: envelope::failed };

/// Every route of the document that the control plane serves.
const ROUTES: &[Route] = &[];
