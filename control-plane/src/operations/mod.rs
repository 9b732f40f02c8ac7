//! What can be done, one concept a file. No HTTP, no profile, no shape of a contract in here.
//!
//! An operation takes typed values and who does it, and answers a value or a fault.

/// Who calls: from a credential to a user with rights.
pub mod authenticate;

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
}

/// What a write gave, and the revision that data planes must reach to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<T> {
    /// What it gave.
    pub value: T,
    /// `None`: data planes need not know.
    pub revision: Option<Revision>,
}
