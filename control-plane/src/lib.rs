//! Pagoda's control plane: users, keys, models, agents, sessions and usage over Postgres.
//!
//! A request flows through `http` (route, credential, body), a face in `profiles` (its document's
//! names and shapes), an operation in `operations` (what is done, no HTTP in it) and `database`
//! (one transaction that writes, audits and publishes). What data planes need leaves through
//! `internal`. ARCHITECTURE.md has the whole picture.

/// A private Postgres, where no other is named.
pub mod cluster;

/// What an operator types.
pub mod command;

/// Connections, migrations and the one way to write.
pub mod database;

/// Whose fault it was.
pub mod fault;

/// What data planes are told.
pub mod feed;

/// From socket to route and back.
pub mod http;

/// What is counted.
pub mod metrics;

/// What can be done.
pub mod operations;

/// What one contract calls it.
pub mod profiles;

/// What the installation alone knows.
pub mod secrets;

/// The life of the server.
pub mod serve;

/// A database of its own for each test, here and in other crates.
#[doc(hidden)]
pub mod test_database;
