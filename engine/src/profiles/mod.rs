//! The faces of the server, one folder each; one line of [`FACES`] mounts one.
//!
//! A profile is routes, names and shapes over the operations of [`crate::api`]; it decides nothing
//! about models, keys or sockets. The order is the order in which a listener asks them.

/// The public OpenAI API.
pub mod openai;

/// Models as they come and go.
pub mod admin;

/// What belongs to the listener itself: health, metrics, the chat page.
pub mod listener;

use crate::http::route::Face;

/// Faces of the default listener.
pub static FACES: &[&Face] = &[&openai::FACE, &listener::FACE];

/// Faces where models may be changed.
pub static FACES_WITH_ADMIN: &[&Face] = &[&openai::FACE, &admin::FACE, &listener::FACE];

#[cfg(test)]
mod tests;
