//! The control plane, as a data plane sees it: who may call, by what it last told.
//!
//! One task follows the feed and swaps in what is known, whole; requests only read it. Without a
//! control plane what was told last goes on to count, for a bounded time.

/// Follows the feed.
pub mod follow;

/// What was told last, on the disk.
pub mod saved;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use hyper::HeaderMap;
use pagoda_wire::gate::{Admitted, Refusal};
use pagoda_wire::known::Known;
use pagoda_wire::snapshot::{Revision, Scope};

use crate::api::error::ApiError;
use crate::http::keys::only_authorization;

/// Who may call, by what the control plane last told.
#[derive(Debug)]
pub struct Plane {
    known: ArcSwapOption<Known>,
    /// When the control plane was last heard, in Unix seconds.
    heard_at: AtomicI64,
    stale_max: Duration,
}

/// How a data plane stands to its control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The last write that is known; `None` before the first.
    pub revision: Option<Revision>,
    /// Seconds since the control plane was last heard.
    pub age_s: u64,
}

impl Plane {
    /// Nobody may call yet. What is known counts for `stale_max` after the last word.
    pub fn new(stale_max: Duration) -> Self {
        Plane { known: ArcSwapOption::empty(), heard_at: AtomicI64::new(0), stale_max }
    }

    /// Who calls with these headers from this address. No I/O.
    pub fn authenticate(&self, headers: &HeaderMap, address: IpAddr) -> Result<Admitted, ApiError> {
        let header = only_authorization(headers)?;
        let (scheme, credential) = header
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .ok_or(ApiError::MissingKey)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::MissingKey);
        }
        let known = self.known.load();
        let known = known.as_ref().filter(|_| self.age_s() <= self.stale_max.as_secs());
        let known = known.ok_or(ApiError::NobodyKnown)?;
        let admitted = known.admit(credential.trim(), address, now_s());
        let admitted = admitted.map_err(|refusal| match refusal {
            Refusal::Wrong => ApiError::WrongKey,
            Refusal::Expired => ApiError::ExpiredKey,
            Refusal::Address => ApiError::NotPermitted("from this address"),
        })?;
        match admitted.has(Scope::Inference) {
            true => Ok(admitted),
            false => Err(ApiError::NotPermitted("with this key")),
        }
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let revision = self.known.load().as_ref().map(|known| known.revision());
        Standing { revision, age_s: self.age_s() }
    }

    fn age_s(&self) -> u64 {
        let heard_at = self.heard_at.load(Relaxed);
        u64::try_from(now_s().saturating_sub(heard_at)).unwrap_or(0)
    }

    /// What is known now.
    pub fn known(&self) -> Option<Arc<Known>> {
        self.known.load_full()
    }

    fn learn(&self, known: Known, heard_at: i64) {
        self.known.store(Some(Arc::new(known)));
        self.heard(heard_at);
    }

    fn heard(&self, at: i64) {
        self.heard_at.store(at, Relaxed);
    }
}

/// Now, in Unix seconds. A clock from before 1970 lets nobody in.
fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
