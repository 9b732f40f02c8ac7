//! What data planes are told: the whole at first, then each administrative write.
//!
//! A data plane opens one stream and gets sealed frames, one a line; it says what it has applied.
//! Whoever wrote waits for that, so that what was taken back is refused everywhere when the
//! answer comes, or the laggards are named. Changes nothing of what it tells.

/// What is told, read from the database.
pub mod log;

/// Who follows, and how far.
pub mod planes;

/// When there is something new.
pub mod news;

/// Frames of one data plane.
pub mod stream;

#[cfg(test)]
mod tests;
