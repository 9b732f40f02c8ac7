//! What can be done, one concept a file. No HTTP, no profile, no shape of a contract in here.
//!
//! An operation takes typed values and who does it, and answers a value or a fault.

/// Who calls: from a credential to a user with rights.
pub mod authenticate;

/// Who may do what.
pub mod rbac;

/// Parts of lists.
pub mod page;

/// Values of users and keys that can be what they say.
pub mod fields;

/// Users.
pub mod users;

/// Hashes of passwords.
pub mod passwords;

/// Attempts to log in, and when the next may come.
pub mod throttle;

/// Logins: from a password to their end.
pub mod logins;

/// Refresh tokens.
pub mod refresh;

/// What access tokens are signed with.
pub mod signing_keys;

/// Peppers of key MACs.
pub mod peppers;

/// API keys.
pub mod api_keys;

/// Texts that people give.
pub mod text;

/// Parts of lists.
pub mod window;

/// Whose sessions and files.
pub mod owner;

/// Chat sessions.
pub mod chats;

/// Messages of a session.
pub mod messages;

/// What a model is given of a session.
pub mod history;

/// Where bytes of files are.
pub mod blobs;

/// Names of files that people upload.
pub mod file_names;

/// What a file is, by its bytes.
pub mod formats;

/// Files of users.
pub mod files;

/// What is drawn in a drawing.
pub mod drawings;

/// Other people's APIs and our credentials there.
pub mod upstreams;

/// What callers name, who serves it and what it costs.
pub mod models;

/// Parameters that an agent may bring.
pub mod parameters;

/// A model with a prompt and parameters.
pub mod agents;

/// Agents of a file.
pub mod agent_file;

/// What goes with time.
pub mod retention;

/// Partitions, made ahead and dropped by age.
pub mod partitions;

/// What is done from time to time.
pub mod upkeep;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use pagoda_wire::snapshot::Revision;

use crate::database::Database;
use crate::metrics::Metrics;
use crate::secrets::Secrets;

pub use authenticate::Principal;

/// Everything that operations need.
pub struct Operations {
    /// The database.
    pub database: Database,
    /// What the installation alone knows.
    pub secrets: Secrets,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who signs tokens, and for whom.
    pub issuer: String,
    /// The one place where passwords are hashed.
    pub passwords: passwords::Passwords,
    /// Lives of tokens, and who may come.
    pub policy: logins::Policy,
}

/// What a write gave, and the revision that data planes must reach to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<T> {
    /// What it gave.
    pub value: T,
    /// `None`: data planes need not know.
    pub revision: Option<Revision>,
}
