//! Parts of lists that go by id, newest first: ids grow with time, so no part costs more than the one
//! before it. And whole lists, for full snapshots.
//!
//! Never holds more of a list than was asked for.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use pagoda_wire::snapshot::Item;
use tokio_postgres::Row;
use uuid::Uuid;

use super::window::Window;
use crate::fault::Fault;

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

impl Window<Uuid> {
    /// As much as one part holds, behind `after`: for who reads all parts.
    pub fn largest(after: Option<Uuid>) -> Result<Self, Fault> {
        let mut window = Window::first(u64::MAX)?;
        window.after = after;
        Ok(window)
    }

    /// Ids of the part are below this one,
    pub fn below(&self) -> Uuid {
        self.after.unwrap_or(Uuid::max())
    }

    /// and so many are read: one more than asked for says whether there is a next part.
    pub fn fetch(&self) -> i64 {
        self.limit() + 1
    }

    /// The part that `fetched` is.
    pub fn list<T>(&self, mut fetched: Vec<T>, total: i64, id: impl Fn(&T) -> Uuid) -> List<T> {
        let limit = usize::try_from(self.limit()).unwrap_or_default();
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
