//! Partitions of what is kept for a time: the audit by month, events of usage by day.
//!
//! Made ahead, so that rows find theirs, and dropped whole by age: no row is deleted and no index
//! bloats. Rows that came before their partition lie in the default one and are moved when it is
//! made. A default partition rules out `detach concurrently`, so a partition is detached under a
//! lock that gives up after a second and is tried again the next time.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};

use crate::database::Database;
use crate::fault::Fault;
use crate::operations::retention::alone;

/// A table that is cut by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitioned {
    table: &'static str,
    column: &'static str,
    period: Period,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    Day,
    Month,
}

/// What was done for a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// Partitions that were made.
    pub made: Vec<String>,
    /// Rows that had come before their partition.
    pub moved: u64,
    /// Partitions that were dropped.
    pub dropped: Vec<String>,
}

/// The audit.
pub const AUDIT: Partitioned =
    Partitioned { table: "audit_log", column: "at", period: Period::Month };

/// Events of usage.
pub const USAGE: Partitioned =
    Partitioned { table: "usage_event", column: "stored_at", period: Period::Day };

/// Makes the partitions of `now` and of a week ahead, and drops those whose last row is older than
/// `keep_days`. Does nothing while somebody else does.
pub async fn tend(
    database: &Database,
    table: Partitioned,
    now: Timestamp,
    keep_days: u16,
) -> Result<Tended, Fault> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let mut tended = Tended::default();
    let present = table.present(database).await?;
    let mut first = table.begin(today)?;
    let last = table.begin(later(today, AHEAD_DAYS.days())?)?;
    while first <= last {
        let name = table.name(first);
        if !present.contains(&name) {
            match table.make(database, first).await? {
                Some(moved) => tended.moved += moved,
                None => return Ok(tended),
            }
            tended.made.push(name);
        }
        first = table.end(first)?;
    }
    let oldest = later(today, i64::from(keep_days).days().negate())?;
    for name in present {
        let Some(first) = table.parse(&name) else { continue };
        if table.end(first)? <= oldest && table.drop(database, &name).await? {
            tended.dropped.push(name);
        }
    }
    Ok(tended)
}

impl Partitioned {
    /// The first day of the period that holds `day`.
    fn begin(self, day: Date) -> Result<Date, Fault> {
        match self.period {
            Period::Day => Ok(day),
            Period::Month => Ok(day.first_of_month()),
        }
    }

    /// The first day behind the period that begins at `first`.
    fn end(self, first: Date) -> Result<Date, Fault> {
        match self.period {
            Period::Day => later(first, 1.day()),
            Period::Month => later(first, 1.month()),
        }
    }

    /// `usage_event_20261122`: digits behind one of our own names, so it is safe in a statement.
    fn name(self, first: Date) -> String {
        let (year, month, day) = (first.year(), first.month(), first.day());
        match self.period {
            Period::Day => format!("{}_{year:04}{month:02}{day:02}", self.table),
            Period::Month => format!("{}_{year:04}{month:02}", self.table),
        }
    }

    /// The period of a name that we gave.
    fn parse(self, name: &str) -> Option<Date> {
        let digits = name.strip_prefix(self.table)?.strip_prefix('_')?;
        let part = |from: usize, to: usize| digits.get(from..to)?.parse::<i16>().ok();
        let day = match self.period {
            Period::Day => part(6, 8)?,
            Period::Month => 1,
        };
        let month = i8::try_from(part(4, 6)?).ok()?;
        let first = Date::new(part(0, 4)?, month, i8::try_from(day).ok()?).ok()?;
        // Nothing that merely looks like one.
        (self.name(first) == name).then_some(first)
    }

    async fn present(self, database: &Database) -> Result<Vec<String>, Fault> {
        let client = database.client().await?;
        let rows = client
            .query(
                "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
                 where i.inhparent = $1::text::regclass",
                &[&self.table],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Makes one partition and moves its rows into it. `None`: somebody else tends.
    async fn make(self, database: &Database, first: Date) -> Result<Option<u64>, Fault> {
        let (table, column, name) = (self.table, self.column, self.name(first));
        let (from, to) = (first, self.end(first)?);
        let mut client = database.client().await?;
        let Some(transaction) = alone(&mut client).await? else { return Ok(None) };
        // It is made apart: as a part of the table it could not be while rows of its time lie in
        // the default partition.
        transaction
            .batch_execute(&format!(
                "set local statement_timeout = '5min'; set local lock_timeout = '1s';
                 create table if not exists {name} (like {table} including defaults including constraints)"
            ))
            .await?;
        let moved = transaction
            .execute(
                &format!(
                    "with moved as (
                         delete from {table}_rest
                         where {column} >= '{from} 00:00+00' and {column} < '{to} 00:00+00'
                         returning *)
                     insert into {name} select * from moved"
                ),
                &[],
            )
            .await?;
        transaction
            .batch_execute(&format!(
                "alter table {table} attach partition {name}
                     for values from ('{from} 00:00+00') to ('{to} 00:00+00')"
            ))
            .await?;
        transaction.commit().await?;
        Ok(Some(moved))
    }

    /// Drops one partition; false if somebody else tends, or if the table is too busy for now.
    async fn drop(self, database: &Database, name: &str) -> Result<bool, Fault> {
        let mut client = database.client().await?;
        let Some(transaction) = alone(&mut client).await? else { return Ok(false) };
        let dropped = transaction
            .batch_execute(&format!(
                "set local lock_timeout = '1s';
                 alter table {} detach partition {name}; drop table {name}",
                self.table
            ))
            .await;
        match dropped.map_err(Fault::from) {
            Ok(()) => transaction.commit().await?,
            Err(Fault::Unavailable { .. }) => return Ok(false),
            Err(fault) => return Err(fault),
        }
        Ok(true)
    }
}

fn later(day: Date, by: Span) -> Result<Date, Fault> {
    day.checked_add(by).map_err(Fault::internal)
}

/// Partitions are there this long before their first row.
const AHEAD_DAYS: i64 = 7;
