//! The faces through real sockets, before a scripted engine behind the real border.

/// An engine whose behaviour the prompt chooses.
mod scripted;

/// A client that writes bytes and reads answers, so that it can misbehave.
mod client;

/// What clients of the OpenAI API see.
mod openai;

/// Answers that are large.
mod answers;

/// Clients that leave, stall, or send too much.
mod misbehaving;

/// Keys, origins, methods, and the listener's own routes.
mod surface;

/// The same faces before the demo model.
mod demo;
