//! Chat sessions: made, listed, changed and removed by their owner.
//!
//! They are the owner's data, not administration: nothing here is audited or published. A removed
//! session is gone for everybody at once; its rows go in batches later (`retention`).

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::database::{Database, TENANT};
use crate::fault::Fault;
use crate::operations::owner::Owner;
use crate::operations::text::Text;
use crate::operations::window::Window;

/// What a session is called. Whatever people type; faces escape it.
pub type Title = Text<500>;

/// A session without its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// The session.
    pub id: Uuid,
    /// What it is called.
    pub title: String,
    /// Whether it is among the ones shown.
    pub is_active: bool,
    /// The agent that answers in it.
    pub agent: Option<Uuid>,
    /// Grows with every write of messages.
    pub version: i64,
    /// Messages that it has.
    pub num_messages: i64,
    /// When it was made,
    pub created_at: Timestamp,
    /// and when something of it changed.
    pub updated_at: Timestamp,
}

/// A session to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewChat {
    /// Its id; `None` is a new one.
    pub id: Option<Uuid>,
    /// What it is called.
    pub title: Title,
    /// The agent that answers in it.
    pub agent: Option<Uuid>,
}

/// What may be changed of a session; `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatChange {
    /// What it is called.
    pub title: Option<Title>,
    /// Whether it is among the ones shown.
    pub is_active: Option<bool>,
}

/// Where a list of sessions goes on: the last one that was seen.
pub type ChatPlace = (Timestamp, Uuid);

impl Chat {
    /// Where a list goes on behind this session.
    pub fn place(&self) -> ChatPlace {
        (self.updated_at, self.id)
    }
}

/// Makes a session. An id that is in use is nobody's to take, whoever uses it.
pub async fn create(database: &Database, owner: &Owner, new: NewChat) -> Result<Chat, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "insert into chat (id, tenant_id, user_id, profile, title, agent_id)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (id) do nothing returning {COLUMNS}"
        ))
        .await?;
    let id = new.id.unwrap_or_else(Uuid::now_v7);
    let title = new.title.as_str();
    let made = client
        .query_opt(&statement, &[&id, &TENANT, &owner.user, &owner.profile, &title, &new.agent])
        .await
        .map_err(no_agent)?;
    made.map(|row| chat(&row)).ok_or(Fault::NotFound("session"))
}

/// The owner's sessions, what changed last first.
pub async fn list(
    database: &Database,
    owner: &Owner,
    active_only: bool,
    window: &Window<ChatPlace>,
) -> Result<Vec<Chat>, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from chat
             where {} and deleted_at is null and (is_active or not $2)
               and ($3::timestamptz is null or (updated_at, id) < ($3, $4::uuid))
             order by updated_at desc, id desc offset $5 limit $6",
            owner.owns()
        ))
        .await?;
    let (since, id) = window.after.unzip();
    let rows = client
        .query(
            &statement,
            &[owner.parameter(), &active_only, &since, &id, &window.skip(), &window.limit()],
        )
        .await?;
    Ok(rows.iter().map(chat).collect())
}

/// One session.
pub async fn find(database: &Database, owner: &Owner, id: Uuid) -> Result<Chat, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from chat where {} and id = $2 and deleted_at is null",
            owner.owns()
        ))
        .await?;
    let row = client.query_opt(&statement, &[owner.parameter(), &id]).await?;
    row.map(|row| chat(&row)).ok_or(Fault::NotFound("session"))
}

/// Changes a session.
pub async fn update(
    database: &Database,
    owner: &Owner,
    id: Uuid,
    change: ChatChange,
) -> Result<Chat, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "update chat set title = coalesce($3, title), is_active = coalesce($4, is_active),
                 updated_at = now()
             where {} and id = $2 and deleted_at is null returning {COLUMNS}",
            owner.owns()
        ))
        .await?;
    let title = change.title.as_ref().map(Title::as_str);
    let row =
        client.query_opt(&statement, &[owner.parameter(), &id, &title, &change.is_active]).await?;
    row.map(|row| chat(&row)).ok_or(Fault::NotFound("session"))
}

/// Removes a session.
pub async fn delete(database: &Database, owner: &Owner, id: Uuid) -> Result<(), Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "update chat set deleted_at = now() where {} and id = $2 and deleted_at is null",
            owner.owns()
        ))
        .await?;
    match client.execute(&statement, &[owner.parameter(), &id]).await? {
        0 => Err(Fault::NotFound("session")),
        _ => Ok(()),
    }
}

/// Columns of a session, for [`chat`].
pub(crate) const COLUMNS: &str =
    "id, title, is_active, agent_id, version, message_count, created_at, updated_at";

/// A session from its columns.
pub(crate) fn chat(row: &Row) -> Chat {
    Chat {
        id: row.get(0),
        title: row.get(1),
        is_active: row.get(2),
        agent: row.get(3),
        version: row.get(4),
        num_messages: row.get(5),
        created_at: row.get(6),
        updated_at: row.get(7),
    }
}

/// The only reference of a session that a caller chooses is its agent.
pub(crate) fn no_agent(error: tokio_postgres::Error) -> Fault {
    match error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) {
        true => Fault::invalid("agent", "there is no such agent"),
        false => error.into(),
    }
}
