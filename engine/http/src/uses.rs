//! Requests of one connection, so that a connection without any does not stay for ever.
//!
//! Counts and decides nothing else. HTTP/2 peers may keep a connection open by answering
//! pings alone; HTTP/1 connections have hyper's own deadline for the next head.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How many requests began, and how many of them are over.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    begun: AtomicU64,
    over: AtomicU64,
}

/// A request that goes on until its answer's body is gone.
#[derive(Debug)]
pub(crate) struct Use(Arc<Uses>);

impl Drop for Use {
    fn drop(&mut self) {
        self.0.over.fetch_add(1, Relaxed);
    }
}

impl Uses {
    /// A request begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Use {
        self.begun.fetch_add(1, Relaxed);
        Use(self.clone())
    }

    /// Returns once no request went on for at least `time`, and at most twice that.
    pub(crate) async fn until_unused(&self, time: Duration) {
        let mut seen = None;
        loop {
            let (begun, over) = (self.begun.load(Relaxed), self.over.load(Relaxed));
            if begun == over && seen == Some(begun) {
                return;
            }
            seen = (begun == over).then_some(begun);
            tokio::time::sleep(time).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_unused_once_its_last_request_is_over() {
        let uses = Arc::new(Uses::default());
        let time = Duration::from_millis(10);
        let running = uses.begin();
        let waits = tokio::time::timeout(10 * time, uses.until_unused(time));
        assert!(waits.await.is_err(), "a request goes on");
        drop(running);
        uses.until_unused(time).await;
    }
}
