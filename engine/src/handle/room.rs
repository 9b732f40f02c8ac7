//! A budget of event items over all open requests of an instance.
//!
//! A request's ring is sized for all that the request can bring, so that the engine thread never
//! waits for a reader. This is what bounds the sum: a request takes its part before its ring is
//! allocated, and gives it back with the ring's memory, when reader and engine have both let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Items that all rings may hold together.
#[derive(Debug)]
pub struct EventBudget {
    left: AtomicUsize,
}

/// One request's part. Dropping it gives it back.
#[derive(Debug)]
pub struct EventRoom {
    budget: Arc<EventBudget>,
    items: usize,
}

impl EventBudget {
    /// A budget of `items`.
    pub fn new(items: usize) -> Arc<Self> {
        Arc::new(EventBudget { left: AtomicUsize::new(items) })
    }

    /// Takes `items`; `None` if fewer are left. Never waits.
    pub fn take(self: &Arc<Self>, items: usize) -> Option<EventRoom> {
        let taken = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(items));
        taken.ok().map(|_| EventRoom { budget: self.clone(), items })
    }
}

impl EventRoom {
    /// Its size in items.
    pub fn items(&self) -> usize {
        self.items
    }
}

impl Drop for EventRoom {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.items, Relaxed);
    }
}
