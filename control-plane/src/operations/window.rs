//! Which part of a list is wanted. Lists run from a place on, by key; the contracts' pages and
//! offsets are a number of rows to pass over, which is capped: deep pages cost what they pass.

use crate::fault::Fault;

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<Place> {
    /// Behind this place; `None` is the beginning.
    pub after: Option<Place>,
    /// Rows to pass over from there.
    skip: i64,
    /// Rows at most.
    limit: i64,
}

impl<Place> Window<Place> {
    /// The first `limit` rows. More than a hundred are not given at once.
    pub fn first(limit: u64) -> Result<Self, Fault> {
        Self::skipping(0, limit)
    }

    /// Rows behind a place.
    pub fn after(place: Place, limit: u64) -> Result<Self, Fault> {
        Ok(Window { after: Some(place), ..Self::first(limit)? })
    }

    /// Rows behind the first `skip`.
    pub fn skipping(skip: u64, limit: u64) -> Result<Self, Fault> {
        if limit == 0 {
            return Err(Fault::invalid("limit", "limit must be at least 1"));
        }
        if skip > SKIP_MAX {
            return Err(Fault::invalid("skip", format!("at most {SKIP_MAX} rows can be skipped")));
        }
        let (skip, limit) = (skip as i64, limit.min(LIMIT_MAX) as i64);
        Ok(Window { after: None, skip, limit })
    }

    /// A page, from 1.
    pub fn page(page: u64, limit: u64) -> Result<Self, Fault> {
        let page =
            page.checked_sub(1).ok_or_else(|| Fault::invalid("page", "pages begin with 1"))?;
        Self::skipping(page.saturating_mul(limit.min(LIMIT_MAX)), limit)
    }

    /// Rows to pass over.
    pub fn skip(&self) -> i64 {
        self.skip
    }

    /// Rows at most.
    pub fn limit(&self) -> i64 {
        self.limit
    }
}

/// Rows of one answer.
const LIMIT_MAX: u64 = 100;

/// Rows that an offset may pass over.
const SKIP_MAX: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_08_pages_are_capped() {
        let window = Window::<()>::page(3, 1000).unwrap();
        assert_eq!((window.skip(), window.limit()), (200, 100));
        assert!(Window::<()>::page(0, 20).is_err());
        assert!(Window::<()>::first(0).is_err());
        assert!(Window::<()>::page(u64::MAX, 20).is_err());
        assert!(Window::<()>::skipping(10_001, 20).is_err());
    }
}
