//! What goes with time: idle sessions, rows of removed ones, bytes that nobody owns.
//!
//! Each call does one bounded batch in one transaction and says how much it did; whoever tends calls
//! until it is nothing. A batch holds an advisory lock that ends with its transaction, so of several
//! control planes one works and none waits, and one that dies holds nothing.

use std::sync::Arc;

use deadpool_postgres::Transaction;

use crate::database::{Client, Database};
use crate::fault::Fault;
use crate::operations::blobs::{BlobName, BlobStore};

/// Removes sessions of a profile that were idle for so many days, as their owner would.
pub async fn remove_idle_chats(
    database: &Database,
    profile: &str,
    days: i32,
) -> Result<u64, Fault> {
    let mut client = database.client().await?;
    let Some(transaction) = alone(&mut client).await? else { return Ok(0) };
    let removed = transaction
        .execute(
            "update chat set deleted_at = now() where id in (
                 select id from chat
                 where deleted_at is null and profile = $1 and updated_at < now() - make_interval(days => $2)
                 order by updated_at limit $3 for update skip locked)",
            &[&profile, &days, &CHATS],
        )
        .await?;
    transaction.commit().await?;
    Ok(removed)
}

/// Deletes rows of removed sessions: messages first, a batch at a time, then the session that has
/// none. One that was removed just now may still be read by a statement that runs.
pub async fn delete_removed_chats(database: &Database) -> Result<u64, Fault> {
    let mut client = database.client().await?;
    let Some(transaction) = alone(&mut client).await? else { return Ok(0) };
    let messages = transaction
        .execute(
            "delete from message where (chat_id, id) in (
                 select m.chat_id, m.id from message m
                 where m.chat_id in (
                     select id from chat where deleted_at is not null
                     order by deleted_at limit $1 for update skip locked)
                 limit $2)",
            &[&CHATS, &MESSAGES],
        )
        .await?;
    let chats = transaction
        .execute(
            "delete from chat where id in (
                 select id from chat c where deleted_at is not null
                     and not exists (select from message m where m.chat_id = c.id)
                 order by deleted_at limit $1 for update skip locked)",
            &[&CHATS],
        )
        .await?;
    transaction.commit().await?;
    Ok(messages + chats)
}

/// Deletes bytes that no row owns: of files that are gone, and of uploads that did not end in time.
/// The rows go when the bytes are gone, so a crash between the two forgets nothing.
pub async fn delete_garbage(database: &Database, store: &Arc<dyn BlobStore>) -> Result<u64, Fault> {
    let mut client = database.client().await?;
    let Some(transaction) = alone(&mut client).await? else { return Ok(0) };
    let rows = transaction
        .query(
            "select blob from file_garbage g where not_before <= now()
                 and not exists (select from file f where f.blob = g.blob)
             order by not_before limit $1 for update skip locked",
            &[&BLOBS],
        )
        .await?;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let (store, blobs) = (store.clone(), names.clone());
    let gone = tokio::task::spawn_blocking(move || {
        let is_gone = |name: &String| {
            let deleted = BlobName::parse(name).map(|blob| store.delete(&blob));
            if let Some(Err(error)) = &deleted {
                tracing::warn!(%error, blob = name, "bytes of a file that is gone stay for now");
            }
            !matches!(deleted, Some(Err(_)))
        };
        blobs.into_iter().filter(is_gone).collect::<Vec<_>>()
    });
    let gone = gone.await.map_err(Fault::internal)?;
    let deleted =
        transaction.execute("delete from file_garbage where blob = any($1)", &[&gone]).await?;
    transaction.commit().await?;
    Ok(deleted)
}

/// A transaction of the one who tends now; `None`: somebody else does.
pub(crate) async fn alone(client: &mut Client) -> Result<Option<Transaction<'_>>, Fault> {
    let transaction = client.transaction().await?;
    let row = transaction.query_one("select pg_try_advisory_xact_lock($1)", &[&LOCK]).await?;
    Ok(row.get::<_, bool>(0).then_some(transaction))
}

/// Held by whoever tends.
const LOCK: i64 = 0x7061_676f_6461_0011;

/// Sessions,
const CHATS: i64 = 100;

/// messages
const MESSAGES: i64 = 5000;

/// and blobs of one batch.
const BLOBS: i64 = 50;

#[cfg(test)]
mod tests;
