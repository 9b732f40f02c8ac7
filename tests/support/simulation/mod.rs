//! The step loop, driven from a seed against a model whose outcome has a closed form.
//!
//! The pretended model owns a real KV store: it writes a hash of (token, position, salt) to each
//! slot, and its next token is a hash of everything that it reads through the block tables. So any
//! wrong slot, table, window, share, order or rollback changes tokens.

/// The model's arithmetic and the closed form.
pub mod closed_form;

/// Runs plans over a real KV store.
pub mod hash_runner;

/// Drafts that are right some of the time.
pub mod hash_drafts;

/// Settings and requests made from a seed, and how to shrink them.
pub mod workload;

/// Drives the loop and compares what readers see with the closed form.
pub mod driver;
