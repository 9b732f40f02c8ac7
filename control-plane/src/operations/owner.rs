//! Whose sessions and files: a user's, through whichever profile, or those that the anonymous
//! callers of one profile share.
//!
//! Every statement that reads or writes one of them names the owner beside the id, so another's id
//! is an id of nothing.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Somebody who owns sessions and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user; `None` is the anonymous callers.
    pub user: Option<Uuid>,
    /// The profile that the call came through.
    pub profile: &'static str,
}

impl Owner {
    /// A user.
    pub fn user(user: Uuid, profile: &'static str) -> Self {
        Owner { user: Some(user), profile }
    }

    /// The anonymous callers of a profile.
    pub fn anonymous(profile: &'static str) -> Self {
        Owner { user: None, profile }
    }

    /// The condition that a row is the owner's, with [`Owner::parameter`] as `$1`. Two texts rather
    /// than one with `or`, which would fit neither index.
    pub(crate) fn owns(&self) -> &'static str {
        match self.user {
            Some(_) => OWNED_BY_USER,
            None => OWNED_BY_PROFILE,
        }
    }

    /// Who, in the statement.
    pub(crate) fn parameter(&self) -> &(dyn ToSql + Sync) {
        match &self.user {
            Some(user) => user,
            None => &self.profile,
        }
    }

    /// A name for locks on what the owner has as a whole.
    pub(crate) fn lock_name(&self) -> String {
        match self.user {
            Some(user) => user.to_string(),
            None => format!("anonymous {}", self.profile),
        }
    }
}

const OWNED_BY_USER: &str = "(tenant_id, user_id) = ('00000000-0000-7000-8000-000000000001', $1)";

const OWNED_BY_PROFILE: &str = "tenant_id = '00000000-0000-7000-8000-000000000001' \
     and user_id is null and profile = $1";
