//! Parts of lists, newest first: by the id that a part ended with, or by a page's number.
//!
//! Ids grow with time, so a list goes by them and no part costs more than the one before it. What a
//! contract counts in pages is mapped, up to a bound.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use pagoda_wire::snapshot::Item;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::fault::Fault;

/// Which part of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    after: Option<Uuid>,
    skip: i64,
    limit: i64,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct List<T> {
    /// At most as many as were asked for.
    pub items: Vec<T>,
    /// All that match.
    pub total: u64,
    /// Where the next part begins, if there is one.
    pub next: Option<Uuid>,
}

impl Page {
    /// Most items of one part,
    pub const LIMIT_MAX: u32 = 100;

    /// and most that may be left out: behind that a list goes by `after`.
    pub const SKIP_MAX: u64 = 10_000;

    /// What stands behind the item `after`.
    pub fn after(after: Option<Uuid>, limit: u32) -> Result<Self, Fault> {
        Self::new(after, 0, limit)
    }

    /// Page `number` of pages of `limit`, from 1.
    pub fn numbered(number: u64, limit: u32) -> Result<Self, Fault> {
        let before = number.checked_sub(1).and_then(|before| before.checked_mul(limit.into()));
        let skip = before.filter(|skip| *skip <= Self::SKIP_MAX).ok_or_else(|| {
            let message =
                format!("page must be at least 1 and leave out at most {}", Self::SKIP_MAX);
            Fault::invalid("page", message)
        })?;
        Self::new(None, i64::try_from(skip).map_err(Fault::internal)?, limit)
    }

    fn new(after: Option<Uuid>, skip: i64, limit: u32) -> Result<Self, Fault> {
        if !(1..=Self::LIMIT_MAX).contains(&limit) {
            let message = format!("limit must be between 1 and {}", Self::LIMIT_MAX);
            return Err(Fault::invalid("limit", message));
        }
        Ok(Page { after, skip, limit: limit.into() })
    }

    /// Ids of the part are below this one,
    pub fn below(&self) -> Uuid {
        self.after.unwrap_or(Uuid::max())
    }

    /// so many of them are left out,
    pub fn left_out(&self) -> i64 {
        self.skip
    }

    /// and so many are read: one more than asked for says whether there is a next part.
    pub fn fetch(&self) -> i64 {
        self.limit + 1
    }

    /// The part that `fetched` is.
    pub fn list<T>(&self, mut fetched: Vec<T>, total: i64, id: impl Fn(&T) -> Uuid) -> List<T> {
        let limit = usize::try_from(self.limit).unwrap_or_default();
        let is_more = fetched.len() > limit;
        fetched.truncate(limit);
        let next = fetched.last().filter(|_| is_more).map(id);
        List { items: fetched, total: total.unsigned_abs(), next }
    }
}

/// Records for a full snapshot, as the database gives them.
pub type Records = BoxStream<'static, Result<Item, Fault>>;

pub(super) async fn stream_records(
    transaction: &tokio_postgres::Transaction<'_>,
    sql: &str,
    record: fn(&Row) -> Result<Item, Fault>,
) -> Result<Records, Fault> {
    let rows = transaction.query_raw(sql, std::iter::empty::<&str>()).await?;
    Ok(rows.map(move |row| record(&row?)).boxed())
}
