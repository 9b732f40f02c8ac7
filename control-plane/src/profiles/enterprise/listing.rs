//! Lists and times in this contract's form: numbered pages, milliseconds with a `Z`.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::fault::Fault;
use uuid::Uuid;

use crate::operations::page::List;
use crate::operations::window::Window;

/// Which page, as the query says.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct Paging {
    #[serde(default = "first")]
    page: u64,
    #[serde(default = "usual")]
    limit: u64,
}

fn first() -> u64 {
    1
}

fn usual() -> u64 {
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
    limit: i64,
    total: u64,
    total_pages: u64,
}

impl Paging {
    /// The part of a list. More than a hundred items are not given at once.
    pub(super) fn part(self) -> Result<Window<Uuid>, Fault> {
        Window::page(self.page, self.limit)
    }

    /// The answer.
    pub(super) fn listing<T, U>(
        self,
        part: &Window<Uuid>,
        list: List<T>,
        show: impl Fn(&T) -> U,
    ) -> Listing<U> {
        let (page, limit, total) = (self.page, part.limit(), list.total);
        let total_pages = total.div_ceil(limit.unsigned_abs());
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
