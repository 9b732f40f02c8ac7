//! Slices of limits and budgets, so that any number of data planes together keep one limit.
//!
//! A data plane asks for what it may give away soon, and gives away no more than it has. What it
//! did not use goes back with the next question, or is lost at the slice's end: never is more given
//! than a limit has, and at most one slice a plane is missing from it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Limit {
    /// Of whom: a key's id, or a user's.
    pub subject: Uuid,
    /// Of what.
    pub unit: Unit,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute.
    Tokens,
    /// Billionths of a dollar in a budget's window.
    Nano,
}

/// What one data plane wants, of any number of limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The data plane's journal, which names it.
    pub plane: Uuid,
    /// Limit by limit.
    pub wants: Vec<Want>,
}

/// What is wanted of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Want {
    /// Which.
    pub limit: Limit,
    /// Of the slice that ends with this question: what was given away and will not come back.
    pub used: u64,
    /// And what was not.
    pub unused: u64,
    /// What the next slice should have.
    pub wanted: u64,
}

/// One slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Of which limit.
    pub limit: Limit,
    /// How much may be given away; 0 if nothing is left.
    pub granted: u64,
    /// Milliseconds for which it is good.
    pub good_for_ms: u64,
    /// What is left of the limit for everybody.
    pub remaining: u64,
    /// Milliseconds until the limit is whole again.
    pub resets_in_ms: u64,
}
