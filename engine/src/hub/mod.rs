//! Models of the Hugging Face hub: `--model org/name` becomes a folder.
//!
//! The first step of a start, before anything is loaded: what is missing in the cache is
//! downloaded, checked against its checksum, and put where other tools of the hub look for it too.
//! Only files that the engine reads are fetched; none of them is ever executed. Knows of models no
//! more than whether their configuration can be used.

/// What a model of the hub is called, and its revisions.
mod id;

/// The cache on this machine.
mod cache;

/// Checksums.
mod digest;

/// Requests, redirects, and what answers mean.
mod remote;

/// How long failures are put up with.
mod patience;

/// Which files a model has, and which of them are needed.
mod listing;

/// One file, resumed and checked.
mod fetch;

/// What a person sees meanwhile.
mod progress;

/// From a name to a folder.
mod snapshot;

/// Why there is no folder.
mod error;

pub(crate) use self::cache::{Cache, Snapshot, missing};
pub use self::error::HubError;
pub use self::id::{ModelId, Revision};
pub use self::snapshot::{Wish, resolve};

/// Files besides weights that a start would fetch of a model that the hub describes so; plain names.
pub fn small_files(answer: &[u8]) -> Result<Vec<String>, String> {
    let listing = listing::Listing::parse(answer)?;
    Ok(listing.small().into_iter().map(|entry| entry.name.clone()).collect())
}

#[cfg(test)]
mod tests;
