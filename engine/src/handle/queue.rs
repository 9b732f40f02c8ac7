//! Places in the waiting queue: taken by submitters, given back by the engine thread.
//!
//! Two numbers of [`LiveStats`] are the whole queue, two of [`TenantPlaces`] a tenant's part of it.
//! A tenant may hold eight times what it leaves free: alone that is as much as the settings say,
//! and an eighth more is left for others; of two each may hold nearly half, and so on. So whoever
//! asks first cannot take all, and whoever holds more than its share is refused until it holds
//! less. Submitters take turns under a lock of their own; the engine thread takes none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::stats::LiveStats;
use crate::scheduler::settings::SchedulerSettings;

/// Who holds places, known to submitters only.
#[derive(Debug, Default)]
pub(super) struct Places {
    tenants: Mutex<HashMap<Arc<str>, Arc<TenantPlaces>>>,
}

/// Places that one tenant holds.
#[derive(Debug, Default)]
pub struct TenantPlaces {
    sequences: AtomicU64,
    tokens: AtomicU64,
}

impl Places {
    /// Takes places for a request of `tenant`, unless the queue or the tenant's share is full. A
    /// lone request may be longer than the limit.
    pub(super) fn take(
        &self,
        tenant: &Arc<str>,
        (sequences, tokens): (u64, u64),
        stats: &LiveStats,
        settings: &SchedulerSettings,
    ) -> Option<Arc<TenantPlaces>> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if !tenants.contains_key(tenant) {
            // Whoever has no request here is forgotten.
            tenants.retain(|_, places| Arc::strong_count(places) > 1);
        }
        let held = tenants.entry(tenant.clone()).or_default();
        // Between here and below others only give back.
        let waiting = stats.waiting.load(Relaxed);
        let places = u64::from(settings.max_queued_requests);
        if !in_share(held.sequences.load(Relaxed), waiting, sequences, places) {
            return None;
        }
        let waiting = stats.waiting_tokens.load(Relaxed);
        let limit = settings.max_queued_tokens;
        if waiting > 0 && !in_share(held.tokens.load(Relaxed), waiting, tokens, limit) {
            return None;
        }
        held.requeue(stats, sequences, tokens);
        Some(held.clone())
    }
}

/// Places of all tenants together, where one may hold `limit`.
pub(super) fn places_of_all(limit: u64) -> u64 {
    limit.saturating_add(limit.div_ceil(SHARE))
}

/// How many times what a tenant leaves free it may hold.
const SHARE: u64 = 8;

/// Whether a tenant that holds `held` of `taken` places may take `more`.
fn in_share(held: u64, taken: u64, more: u64, limit: u64) -> bool {
    let free = places_of_all(limit).checked_sub(taken.saturating_add(more));
    free.is_some_and(|free| held.saturating_add(more) <= free.saturating_mul(SHARE))
}

impl TenantPlaces {
    /// Sequences wait, perhaps again (they were preempted): those keep their right to a place.
    pub fn requeue(&self, stats: &LiveStats, sequences: u64, tokens: u64) {
        self.sequences.fetch_add(sequences, Relaxed);
        self.tokens.fetch_add(tokens, Relaxed);
        stats.waiting.fetch_add(sequences, Relaxed);
        stats.waiting_tokens.fetch_add(tokens, Relaxed);
    }

    /// Sequences left the queue.
    pub fn give_back(&self, stats: &LiveStats, sequences: u64, tokens: u64) {
        self.sequences.fetch_sub(sequences, Relaxed);
        self.tokens.fetch_sub(tokens, Relaxed);
        stats.waiting.fetch_sub(sequences, Relaxed);
        stats.waiting_tokens.fetch_sub(tokens, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(max_queued_requests: u32) -> SchedulerSettings {
        SchedulerSettings { max_queued_requests, ..SchedulerSettings::default() }
    }

    #[test]
    fn a_tenant_alone_may_hold_exactly_the_limit() {
        for limit in 1..200 {
            let (places, stats) = (Places::default(), LiveStats::default());
            let one = || places.take(&"a".into(), (1, 1), &stats, &settings(limit));
            let taken = (0..).take_while(|_| one().is_some()).count();
            assert_eq!(taken, limit as usize);
        }
    }

    #[test]
    fn whoever_comes_late_gets_a_share_and_more_of_it_as_the_first_gives_back() {
        let (places, stats, settings) = (Places::default(), LiveStats::default(), settings(512));
        let take = |tenant: &str| places.take(&tenant.into(), (1, 1), &stats, &settings);
        let first: Vec<_> = std::iter::from_fn(|| take("a")).collect();
        let second: Vec<_> = std::iter::from_fn(|| take("b")).collect();
        assert_eq!((first.len(), second.len()), (512, 56), "beside one that holds all it may");
        assert!(take("c").is_some(), "something is always left");
        for _ in 0..200 {
            first[0].give_back(&stats, 1, 1);
            while take("b").is_some() {}
            assert!(take("a").is_none(), "it holds more than its share");
        }
        let held = |places: &TenantPlaces| places.sequences.load(Relaxed);
        assert_eq!((held(&first[0]), held(&second[0])), (312, 233));
        assert_eq!(stats.waiting.load(Relaxed), 312 + 233 + 1);
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let (places, stats, settings) = (Places::default(), LiveStats::default(), settings(8));
        for tenant in 0..100 {
            let held = places.take(&format!("{tenant}").into(), (1, 1), &stats, &settings).unwrap();
            held.give_back(&stats, 1, 1);
        }
        assert_eq!(places.tenants.lock().unwrap().len(), 1);
        assert_eq!((stats.waiting.load(Relaxed), stats.waiting_tokens.load(Relaxed)), (0, 0));
    }
}
