//! Lists and times in this contract's form: numbered pages, milliseconds with a `Z`.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::fault::Fault;
use crate::operations::page::{List, Page};

/// Which page, as the query says.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct Paging {
    #[serde(default = "first")]
    page: u64,
    #[serde(default = "usual")]
    limit: u32,
}

fn first() -> u64 {
    1
}

fn usual() -> u32 {
    20
}

/// A page.
#[derive(Serialize)]
pub(super) struct Listing<T> {
    items: Vec<T>,
    pagination: Pagination,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pagination {
    page: u64,
    limit: u32,
    total: u64,
    total_pages: u64,
}

impl Paging {
    /// The part of a list. More than a hundred items are not given at once.
    pub(super) fn page(self) -> Result<Page, Fault> {
        Page::numbered(self.page, self.capped())
    }

    fn capped(self) -> u32 {
        self.limit.min(Page::LIMIT_MAX)
    }

    /// The answer.
    pub(super) fn listing<T, U>(self, list: List<T>, show: impl Fn(&T) -> U) -> Listing<U> {
        let (page, limit, total) = (self.page, self.capped(), list.total);
        let total_pages = total.div_ceil(limit.max(1).into());
        let items = list.items.iter().map(show).collect();
        Listing { items, pagination: Pagination { page, limit, total, total_pages } }
    }
}

/// `2025-10-18T10:30:00.000Z`
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A time as a caller wrote it, with its zone.
pub(super) fn moment(field: &'static str, text: &str) -> Result<Timestamp, Fault> {
    let at = text.parse::<Timestamp>().ok().filter(|at| *at >= Timestamp::UNIX_EPOCH);
    at.ok_or_else(|| {
        Fault::invalid(field, format!("{field} must be a time such as 2025-10-18T10:30:00Z"))
    })
}

/// For a field that is left alone when absent, and taken away when null.
pub(super) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
