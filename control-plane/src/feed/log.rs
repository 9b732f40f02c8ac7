//! What is told, read from the database: the whole at one revision, or the writes behind another.

use futures_util::TryStreamExt;
use pagoda_wire::snapshot::{Change, Delta, Frame, Item, Revision, Snapshot};
use tokio_postgres::types::Json;
use tokio_postgres::{IsolationLevel, Transaction};

use crate::database::Client;
use crate::fault::Fault;
use crate::operations::api_keys::rows;
use crate::operations::{
    Operations, agents, logins, models, peppers, signing_keys, upstreams, users,
};

/// The last revision.
pub async fn revision(client: &Client) -> Result<Revision, Fault> {
    let row = client.query_one("select revision from control_revision", &[]).await?;
    u64::try_from(row.get::<_, i64>(0)).map_err(Fault::internal)
}

/// What a data plane at `known` must be told next, `None` if nothing. Without `known`, or where
/// the writes between are not kept any more, that is the whole.
pub async fn next(
    operations: &Operations,
    known: Option<Revision>,
) -> Result<Option<Vec<Frame>>, Fault> {
    let mut client = operations.database.client().await?;
    let Some(known) = known else { return whole(operations, &mut client).await.map(Some) };
    let last = revision(&client).await?;
    if last == known {
        return Ok(None);
    }
    if last > known
        && let Some(deltas) = deltas(&client, known).await?
    {
        return Ok(Some(deltas));
    }
    whole(operations, &mut client).await.map(Some)
}

/// The writes behind `known`, in order; `None` if they are not all kept.
async fn deltas(client: &Client, known: Revision) -> Result<Option<Vec<Frame>>, Fault> {
    let from = i64::try_from(known).map_err(Fault::internal)?;
    let statement = client
        .prepare_cached(
            "select revision, changes from change_log where revision > $1 order by revision limit $2",
        )
        .await?;
    let rows = client.query(&statement, &[&from, &DELTAS_AT_ONCE]).await?;
    let mut deltas = Vec::with_capacity(rows.len());
    for (row, expected) in rows.iter().zip(known + 1..) {
        let revision = u64::try_from(row.get::<_, i64>(0)).map_err(Fault::internal)?;
        if revision != expected {
            return Ok(None);
        }
        let Json(changes): Json<Vec<Change>> = row.try_get(1).map_err(Fault::internal)?;
        deltas.push(Frame::Delta(Delta { revision, changes }));
    }
    Ok((!deltas.is_empty()).then_some(deltas))
}

/// Everything at one revision, as one reader sees it who nobody disturbs.
async fn whole(operations: &Operations, client: &mut Client) -> Result<Vec<Frame>, Fault> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let row = transaction.query_one("select revision from control_revision", &[]).await?;
    let revision = u64::try_from(row.get::<_, i64>(0)).map_err(Fault::internal)?;
    let items = items(operations, &transaction).await?;
    Ok(vec![Frame::Full(Snapshot { revision, items })])
}

/// All records that data planes need, of every kind.
async fn items(operations: &Operations, transaction: &Transaction<'_>) -> Result<Vec<Item>, Fault> {
    let mut items = peppers::records(operations, transaction).await?;
    items.extend(upstreams::records(transaction).await?);
    items.extend(models::records(transaction).await?);
    items.extend(agents::records(transaction).await?);
    let kinds = [
        users::records(transaction).await?,
        rows::records(transaction).await?,
        signing_keys::records(transaction).await?,
        logins::records(transaction).await?,
    ];
    for mut records in kinds {
        while let Some(item) = records.try_next().await? {
            items.push(item);
        }
    }
    Ok(items)
}

/// Writes that are read at once; the next ones follow when these are sent.
const DELTAS_AT_ONCE: i64 = 1000;
