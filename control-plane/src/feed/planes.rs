//! Who follows, and how far: data planes say each second what they have applied.
//!
//! It stands in the database, so that whoever wrote on one control plane sees those that follow
//! another. A data plane that has been silent for some seconds is not waited for: it is down, or
//! serves from what it saved, and says so itself.

use std::time::{Duration, Instant};

use pagoda_wire::snapshot::Revision;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::database::Database;
use crate::fault::Fault;

/// What a data plane says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Its journal's id, which names it.
    pub plane: Uuid,
    /// What people call it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The last revision that it serves by.
    pub applied: Revision,
}

/// Takes a report.
pub async fn report(database: &Database, report: &Report, address: &str) -> Result<(), Fault> {
    let applied =
        i64::try_from(report.applied).map_err(|_| Fault::invalid("applied", "too large"))?;
    if report.name.len() > 200 || report.version.len() > 100 {
        return Err(Fault::invalid("name", "too long"));
    }
    let client = database.client().await?;
    let statement = client
        .prepare_cached(
            "insert into plane (id, name, address, version, applied_revision)
             values ($1, $2, $3, $4, $5)
             on conflict (id) do update set name = excluded.name, address = excluded.address,
                 version = excluded.version, applied_revision = excluded.applied_revision,
                 last_seen = now()",
        )
        .await?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&report.plane, &report.name, &address, &report.version, &applied];
    client.execute(&statement, &values).await?;
    Ok(())
}

/// Waits until every live data plane serves by `revision`, a second at most; answers the names of
/// those that do not yet.
pub async fn laggards(database: &Database, revision: Revision) -> Result<Vec<String>, Fault> {
    let deadline = Instant::now() + PATIENCE;
    let revision = i64::try_from(revision).map_err(Fault::internal)?;
    let client = database.client().await?;
    let statement = client
        .prepare_cached(
            "select name from plane where applied_revision < $1
                 and last_seen > now() - interval '3 seconds' order by name",
        )
        .await?;
    loop {
        let rows = client.query(&statement, &[&revision]).await?;
        if rows.is_empty() || Instant::now() >= deadline {
            return Ok(rows.iter().map(|row| row.get(0)).collect());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How long a write waits for data planes,
const PATIENCE: Duration = Duration::from_secs(1);

/// and how often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
