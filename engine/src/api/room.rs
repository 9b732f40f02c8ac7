//! Room in memory that a request takes on its way in, from its body's first byte to its token ids.
//!
//! Taken by whoever reads the body, and passed along with the texts to whatever thread works on
//! them: a client that leaves does not free a text that still waits in a queue.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

/// A request's part of the memory for requests. Given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Room {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl From<OwnedSemaphorePermit> for Room {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Room { _permit: Arc::new(permit) }
    }
}
