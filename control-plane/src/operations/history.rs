//! What a model is given of a session: its newest messages, and system messages whatever their age.
//!
//! Bounded in messages and bytes. What does not fit the model's context is left out by the data
//! plane, which knows the model.

use uuid::Uuid;

use crate::database::Database;
use crate::fault::Fault;
use crate::operations::chats;
use crate::operations::messages::{COLUMNS, Message, message};
use crate::operations::owner::Owner;

/// Messages of a session at one version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Of the session; another one means other messages.
    pub version: i64,
    /// The oldest first.
    pub messages: Vec<Message>,
}

/// The history of a session; `None` if it still has the version that the caller knows.
pub async fn read(
    database: &Database,
    owner: &Owner,
    chat: Uuid,
    known: Option<i64>,
) -> Result<Option<History>, Fault> {
    let mut client = database.client().await?;
    // One snapshot for version and messages: a write between them would give one's the other's.
    let transaction = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let statement = transaction
        .prepare_cached(&format!(
            "select {} from chat where {} and id = $2 and deleted_at is null",
            chats::COLUMNS,
            owner.owns()
        ))
        .await?;
    let row = transaction.query_opt(&statement, &[owner.parameter(), &chat]).await?;
    let found = row.map(|row| chats::chat(&row)).ok_or(Fault::NotFound("session"))?;
    if known == Some(found.version) {
        return Ok(None);
    }
    let statement = transaction
        .prepare_cached(&format!(
            "with newest as (
                 select {COLUMNS},
                     sum(octet_length(content::text)) over (order by place desc) as bytes
                 from message where chat_id = $1 and place > $2 - {MESSAGES_MAX}::bigint
             ), chosen as (
                 select {COLUMNS} from newest where bytes <= {BYTES_MAX}::bigint
             ), system as (
                 select {COLUMNS} from message
                 where chat_id = $1 and role = 'system'
                     and place < coalesce((select min(place) from chosen), $2 + 1)
                 order by place limit {SYSTEM_MAX}
             )
             select {COLUMNS} from system union all select {COLUMNS} from chosen order by place"
        ))
        .await?;
    let rows = transaction.query(&statement, &[&chat, &found.num_messages]).await?;
    let messages = rows.iter().map(message).collect::<Result<_, _>>()?;
    Ok(Some(History { version: found.version, messages }))
}

/// Messages of a history.
const MESSAGES_MAX: usize = 1000;

/// Bytes of their contents: more tokens than any context has.
const BYTES_MAX: usize = 8 << 20;

/// System messages that are older than the rest.
const SYSTEM_MAX: usize = 16;
