//! A budget of memory for the answers to all open requests, in items of a ring; of a process, all of
//! its instances share one.
//!
//! A request's ring is sized for all that the request can bring, so that the engine thread never
//! waits for a reader, and what a reader makes of it lies beside it. This is what bounds the sum: a
//! request takes room for both before its ring is allocated. One takes a quarter at most, and an
//! eighth is kept for small ones, so that no client takes all. The ring's part is given back with
//! the ring's memory, and of what was never written as soon as the engine has finished.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Items that all answers may hold together.
#[derive(Debug)]
pub struct AnswerBudget {
    /// Left for requests of at most `small_items_max`, which take of the other when it is too small.
    small: AtomicUsize,
    /// Left for all others.
    large: AtomicUsize,
    small_items_max: usize,
    request_items_max: usize,
}

/// One request's part of the budget. Dropping it gives it back.
#[derive(Debug)]
pub struct AnswerRoom {
    budget: Arc<AnswerBudget>,
    is_small: bool,
    items: AtomicUsize,
}

impl AnswerBudget {
    /// A budget of `items`.
    pub fn new(items: usize) -> Arc<Self> {
        let small = items / SMALL_PARTS;
        Arc::new(AnswerBudget {
            small: AtomicUsize::new(small),
            large: AtomicUsize::new(items - small),
            small_items_max: items / SMALL_REQUEST_PARTS,
            request_items_max: items / REQUEST_PARTS,
        })
    }

    /// Most items of one request.
    pub fn request_items_max(&self) -> usize {
        self.request_items_max
    }

    /// Takes `items`; `None` if fewer are left. Never waits.
    pub fn take(self: &Arc<Self>, items: usize) -> Option<AnswerRoom> {
        let room = |is_small| AnswerRoom {
            budget: self.clone(),
            is_small,
            items: AtomicUsize::new(items),
        };
        if items <= self.small_items_max && take_from(&self.small, items) {
            return Some(room(true));
        }
        take_from(&self.large, items).then(|| room(false))
    }

    fn give_back(&self, items: usize, is_small: bool) {
        let pool = if is_small { &self.small } else { &self.large };
        pool.fetch_add(items, Relaxed);
    }
}

fn take_from(pool: &AtomicUsize, items: usize) -> bool {
    pool.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(items)).is_ok()
}

impl AnswerRoom {
    /// Its size in items.
    pub fn items(&self) -> usize {
        self.items.load(Relaxed)
    }

    /// Takes `items` out of it, to be given back by themselves.
    pub fn split(&self, items: usize) -> AnswerRoom {
        let items = items.min(self.items());
        self.items.fetch_sub(items, Relaxed);
        AnswerRoom {
            budget: self.budget.clone(),
            is_small: self.is_small,
            items: AtomicUsize::new(items),
        }
    }

    /// Gives back all but `items`. Allocates nothing and waits for nobody.
    pub fn keep(&self, items: usize) {
        let held = self.items.fetch_min(items, Relaxed);
        self.budget.give_back(held.saturating_sub(items), self.is_small);
    }
}

impl Drop for AnswerRoom {
    fn drop(&mut self) {
        self.budget.give_back(self.items(), self.is_small);
    }
}

/// One request takes at most one of so many parts of the budget.
const REQUEST_PARTS: usize = 4;

/// The share of the budget that is kept for small requests is one of so many.
const SMALL_PARTS: usize = 8;

/// A request is small that takes at most one of so many parts of the budget: 4 MiB of 512.
const SMALL_REQUEST_PARTS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_takes_a_quarter_and_large_ones_leave_an_eighth_to_small_ones() {
        let budget = AnswerBudget::new(1024);
        assert_eq!(budget.request_items_max(), 256);
        let large: Vec<AnswerRoom> = std::iter::from_fn(|| budget.take(256)).collect();
        assert_eq!(large.len(), 3);
        let rest = budget.take(128).unwrap();
        assert!(budget.take(9).is_none());
        let small: Vec<AnswerRoom> = std::iter::from_fn(|| budget.take(8)).collect();
        assert_eq!(small.len(), 16);
        drop(rest);
        assert!(budget.take(8).is_some(), "small ones also take what is left of the other");
        drop((large, small));
        assert_eq!(budget.small.load(Relaxed) + budget.large.load(Relaxed), 1024);
        assert_eq!(budget.small.load(Relaxed), 128);
    }

    #[test]
    fn what_is_split_or_not_kept_is_given_back_once() {
        let budget = AnswerBudget::new(1024);
        let room = budget.take(100).unwrap();
        let part = room.split(30);
        assert_eq!((room.items(), part.items()), (70, 30));
        room.keep(20);
        room.keep(50);
        assert_eq!(room.items(), 20);
        assert_eq!(budget.large.load(Relaxed), 896 - 50);
        drop(part);
        drop(room);
        assert_eq!(budget.large.load(Relaxed), 896);
    }
}
