//! What went wrong and whose fault it was. Operations answer it, faces give it their shape.
//!
//! Holds nothing that a caller may not read: no SQL, no address, no secret. What an operator needs
//! beside it is logged where it happens.

use std::borrow::Cow;

use tokio_postgres::error::SqlState;

/// An operation that was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The caller's: a value is missing, too much or of another type.
    #[error("{message}")]
    Invalid {
        /// Which field, as the operation calls it.
        field: Cow<'static, str>,
        /// What is wrong with it.
        message: String,
    },
    /// The caller's: no credential, or one that is worth nothing (which of these is not told).
    #[error("{}", match .0 { Unknown::Missing => "a credential is required", Unknown::Wrong => "the credential is not valid", Unknown::Expired => "the credential has expired" })]
    Unauthenticated(Unknown),
    /// The caller's: known, and may not.
    #[error("this needs rights that you do not have")]
    Forbidden,
    /// The caller's: there is none, or it is somebody else's.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The caller's: somebody has it already, or it changed meanwhile.
    #[error("{0}")]
    Conflict(String),
    /// The caller's: too much.
    #[error("{what} is too large: at most {max}")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// With its unit.
        max: String,
    },
    /// The caller's: too often; again after so many seconds.
    #[error("too many requests; try again in {retry_after_s} s")]
    TooMany {
        /// When to try again.
        retry_after_s: u32,
    },
    /// Capacity: the database does not answer, or has no place; again after so many seconds.
    #[error("{what} is not available now; try again in {retry_after_s} s")]
    Unavailable {
        /// What is not.
        what: &'static str,
        /// When to try again.
        retry_after_s: u32,
    },
    /// Ours. The log says what.
    #[error("an internal error")]
    Internal,
}

/// What is wrong with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// There is none.
    Missing,
    /// It is worth nothing.
    Wrong,
    /// It was worth something.
    Expired,
}

impl Fault {
    /// A value that cannot be.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Fault::Invalid { field: field.into(), message: message.into() }
    }

    /// Ours: logs `error` and tells nothing.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "an operation failed");
        Fault::Internal
    }

    /// Whether the caller may try again without a change.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Fault::TooMany { retry_after_s } | Fault::Unavailable { retry_after_s, .. } => {
                Some(*retry_after_s)
            }
            _ => None,
        }
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(state) = error.code() else {
            // No answer of the server: the connection is gone.
            return if error.is_closed() || source_is_io(&error) {
                lost(&error)
            } else {
                Fault::internal(&error)
            };
        };
        let class = &state.code()[..2];
        // Connections; resources; the operator; a disk that is full or read-only.
        if ["08", "53", "57", "58"].contains(&class)
            || *state == SqlState::READ_ONLY_SQL_TRANSACTION
        {
            return lost(&error);
        }
        match *state {
            SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::LOCK_NOT_AVAILABLE => lost(&error),
            // Operations name what their own constraints mean; a text with a NUL byte is nobody's.
            SqlState::CHARACTER_NOT_IN_REPERTOIRE | SqlState::UNTRANSLATABLE_CHARACTER => {
                Fault::invalid("body", "a text holds a character that cannot be stored")
            }
            _ => Fault::internal(&error),
        }
    }
}

fn source_is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn lost(error: &tokio_postgres::Error) -> Fault {
    tracing::warn!(%error, "the database did not serve");
    Fault::Unavailable { what: "the database", retry_after_s: 1 }
}

impl From<deadpool_postgres::PoolError> for Fault {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => match error.into() {
                // Whatever keeps a connection from being made is the database's matter.
                Fault::Internal => Fault::Unavailable { what: "the database", retry_after_s: 1 },
                fault => fault,
            },
            error => {
                tracing::warn!(%error, "no connection to the database is free");
                Fault::Unavailable { what: "the database", retry_after_s: 1 }
            }
        }
    }
}

/// Whether `error` says that `constraint` does not hold.
pub fn violates(error: &tokio_postgres::Error, constraint: &str) -> bool {
    error.as_db_error().is_some_and(|error| error.constraint() == Some(constraint))
}
