//! Messages of a session: appended, listed, or replaced as a whole.
//!
//! Places run from 1 without gaps: they are given under the lock of the session's row, so an offset
//! is a place and no list counts rows. A message that is sent again is stored once, by its id.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio_postgres::Row;
use tokio_postgres::types::Json;
use uuid::Uuid;

use crate::database::{Client, Database};
use crate::fault::Fault;
use crate::operations::chats::{self, Chat, NewChat, Title, no_agent};
use crate::operations::owner::Owner;
use crate::operations::window::Window;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The installation or the application.
    System,
    /// A person.
    User,
    /// The model.
    Assistant,
    /// A tool's answer.
    Tool,
}

/// How a message ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Whole.
    #[default]
    Done,
    /// The caller left; this is what there was.
    Cancelled,
    /// Something broke; this is what there was.
    Failed,
}

/// A text, or a list of parts. `null` where an assistant only calls tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(Value);

/// What a caller keeps beside a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Map<String, Value>);

/// A message to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// Its id: who sends it again sends the same.
    pub id: Uuid,
    /// Who speaks.
    pub speaker: Speaker,
    /// What is said.
    pub content: Content,
    /// Tokens of it, if they were counted.
    pub tokens: Option<i32>,
    /// How it ended.
    pub state: State,
    /// What is kept beside it.
    pub metadata: Metadata,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, unique within its session.
    pub id: Uuid,
    /// Its place in the session, from 1.
    pub place: i64,
    /// Who speaks.
    pub speaker: Speaker,
    /// What is said.
    pub content: Value,
    /// Tokens of it, if they were counted.
    pub tokens: Option<i32>,
    /// How it ended.
    pub state: State,
    /// What is kept beside it.
    pub metadata: Value,
    /// When it was stored.
    pub created_at: Timestamp,
}

/// A whole session to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedChat {
    /// The session; made if nobody has it.
    pub id: Uuid,
    /// `None`: stays as it is.
    pub title: Option<Title>,
    /// `None`: stays as it is.
    pub agent: Option<Uuid>,
    /// What it holds from now on.
    pub messages: Vec<NewMessage>,
}

impl Content {
    /// Takes a text, a list of parts, or nothing.
    pub fn new(value: Value) -> Result<Self, Fault> {
        if !matches!(value, Value::String(_) | Value::Array(_) | Value::Null) {
            return Err(Fault::invalid("content", "content must be a text or a list of parts"));
        }
        match value.to_string().len() <= CONTENT_BYTES_MAX {
            true => Ok(Content(value)),
            false => Err(Fault::TooLarge { what: "the message", max: "1 MiB".into() }),
        }
    }
}

impl Metadata {
    /// Takes any object of bounded size.
    pub fn new(object: Map<String, Value>) -> Result<Self, Fault> {
        let is_small = Value::Object(object.clone()).to_string().len() <= METADATA_BYTES_MAX;
        match is_small {
            true => Ok(Metadata(object)),
            false => Err(Fault::TooLarge { what: "the message's metadata", max: "64 KiB".into() }),
        }
    }
}

/// Appends messages in order. Those that the session has by their id are left as they are. Answers
/// the stored ones, in the order given, and the session as it is then.
pub async fn append(
    database: &Database,
    owner: &Owner,
    chat: Uuid,
    messages: &[NewMessage],
) -> Result<(Vec<Message>, Chat), Fault> {
    check(messages)?;
    let mut client = database.client().await?;
    let transaction = client.transaction().await?;
    let locked = lock(&transaction, owner, chat).await?;
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id).collect();
    let known: Vec<Uuid> = {
        let statement = transaction
            .prepare_cached("select id from message where chat_id = $1 and id = any($2)")
            .await?;
        let rows = transaction.query(&statement, &[&chat, &ids]).await?;
        rows.iter().map(|row| row.get(0)).collect()
    };
    let new: Vec<&NewMessage> =
        messages.iter().filter(|message| !known.contains(&message.id)).collect();
    if locked.num_messages as usize + new.len() > MESSAGES_MAX {
        let max = format!("{MESSAGES_MAX} messages");
        return Err(Fault::TooLarge { what: "the session", max });
    }
    let chat_now = match new.is_empty() {
        true => locked,
        false => {
            insert(&transaction, chat, locked.num_messages, &new).await?;
            let total = locked.num_messages + new.len() as i64;
            count(&transaction, chat, total).await?
        }
    };
    let mut stored = by_ids(&transaction, chat, &ids).await?;
    transaction.commit().await?;
    let order = |id: Uuid| ids.iter().position(|other| *other == id);
    stored.sort_by_key(|message| order(message.id));
    Ok((stored, chat_now))
}

/// Messages of a session, the oldest first, behind a place.
pub async fn list(
    database: &Database,
    owner: &Owner,
    chat: Uuid,
    window: &Window<i64>,
) -> Result<Vec<Message>, Fault> {
    chats::find(database, owner, chat).await?;
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from message where chat_id = $1 and place > $2
             order by place limit $3"
        ))
        .await?;
    let after = window.after.unwrap_or(0).saturating_add(window.skip());
    let rows = client.query(&statement, &[&chat, &after, &window.limit()]).await?;
    rows.iter().map(message).collect()
}

/// Messages before one of the session, or its last ones; the oldest of them first.
pub async fn list_before(
    database: &Database,
    owner: &Owner,
    chat: Uuid,
    before: Option<Uuid>,
    window: &Window<i64>,
) -> Result<Vec<Message>, Fault> {
    let found = chats::find(database, owner, chat).await?;
    let client = database.client().await?;
    let end = match before {
        None => found.num_messages + 1,
        Some(before) => place_of(&client, chat, before).await?,
    };
    let end = end - window.skip();
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from message where chat_id = $1 and place < $2 and place >= $3
             order by place"
        ))
        .await?;
    let rows = client.query(&statement, &[&chat, &end, &(end - window.limit())]).await?;
    rows.iter().map(message).collect()
}

/// Stores a whole session in the place of what it held; makes it if nobody has its id.
pub async fn save(database: &Database, owner: &Owner, saved: SavedChat) -> Result<Chat, Fault> {
    check(&saved.messages)?;
    let new = NewChat {
        id: Some(saved.id),
        title: saved.title.clone().unwrap_or_default(),
        agent: saved.agent,
    };
    // Taken or not is decided by the lock below; one that was just made is nobody else's.
    match chats::create(database, owner, new).await {
        Ok(_) | Err(Fault::NotFound(_)) => {}
        Err(fault) => return Err(fault),
    }
    let mut client = database.client().await?;
    let transaction = client.transaction().await?;
    lock(&transaction, owner, saved.id).await?;
    transaction.execute("delete from message where chat_id = $1", &[&saved.id]).await?;
    let messages: Vec<&NewMessage> = saved.messages.iter().collect();
    insert(&transaction, saved.id, 0, &messages).await?;
    let title = saved.title.as_ref().map(Title::as_str);
    transaction
        .execute(
            "update chat set title = coalesce($2, title), agent_id = coalesce($3, agent_id)
             where id = $1",
            &[&saved.id, &title, &saved.agent],
        )
        .await
        .map_err(no_agent)?;
    let chat = count(&transaction, saved.id, messages.len() as i64).await?;
    transaction.commit().await?;
    Ok(chat)
}

/// What does not depend on the session.
fn check(messages: &[NewMessage]) -> Result<(), Fault> {
    if messages.len() > BATCH_MAX {
        let max = format!("{BATCH_MAX} messages");
        return Err(Fault::TooLarge { what: "the list of messages", max });
    }
    if messages.iter().any(|message| message.tokens.is_some_and(|tokens| tokens < 0)) {
        return Err(Fault::invalid("tokens", "tokens must not be negative"));
    }
    let mut ids: Vec<Uuid> = messages.iter().map(|message| message.id).collect();
    ids.sort_unstable();
    match ids.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(Fault::invalid("id", "two messages have the same id")),
        false => Ok(()),
    }
}

/// The session, which nobody else writes to until the transaction ends.
async fn lock(transaction: &Transaction<'_>, owner: &Owner, chat: Uuid) -> Result<Chat, Fault> {
    let statement = transaction
        .prepare_cached(&format!(
            "select {} from chat where {} and id = $2 and deleted_at is null
             for no key update",
            chats::COLUMNS,
            owner.owns()
        ))
        .await?;
    let row = transaction.query_opt(&statement, &[owner.parameter(), &chat]).await?;
    row.map(|row| chats::chat(&row)).ok_or(Fault::NotFound("session"))
}

/// Stores messages behind the place `last`.
async fn insert(
    transaction: &Transaction<'_>,
    chat: Uuid,
    last: i64,
    messages: &[&NewMessage],
) -> Result<(), Fault> {
    let statement = transaction
        .prepare_cached(
            "insert into message (chat_id, id, place, role, content, tokens, state, metadata)
             select $1, id, $2 + place, role, content, tokens, state, metadata
             from unnest($3::uuid[], $4::text[], $5::jsonb[], $6::int4[], $7::text[], $8::jsonb[])
                 with ordinality as new (id, role, content, tokens, state, metadata, place)",
        )
        .await?;
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id).collect();
    let speakers: Vec<&str> = messages.iter().map(|message| message.speaker.name()).collect();
    let contents: Vec<Json<&Value>> =
        messages.iter().map(|message| Json(&message.content.0)).collect();
    let tokens: Vec<Option<i32>> = messages.iter().map(|message| message.tokens).collect();
    let states: Vec<&str> = messages.iter().map(|message| message.state.name()).collect();
    let metadata: Vec<Json<&Map<String, Value>>> =
        messages.iter().map(|message| Json(&message.metadata.0)).collect();
    transaction
        .execute(
            &statement,
            &[&chat, &last, &ids, &speakers, &contents, &tokens, &states, &metadata],
        )
        .await?;
    Ok(())
}

/// The session has so many messages now, and another version.
async fn count(transaction: &Transaction<'_>, chat: Uuid, total: i64) -> Result<Chat, Fault> {
    let statement = transaction
        .prepare_cached(&format!(
            "update chat set message_count = $2, version = version + 1, updated_at = now()
             where id = $1 returning {}",
            chats::COLUMNS
        ))
        .await?;
    Ok(chats::chat(&transaction.query_one(&statement, &[&chat, &total]).await?))
}

async fn by_ids(
    transaction: &Transaction<'_>,
    chat: Uuid,
    ids: &[Uuid],
) -> Result<Vec<Message>, Fault> {
    let statement = transaction
        .prepare_cached(&format!(
            "select {COLUMNS} from message where chat_id = $1 and id = any($2)"
        ))
        .await?;
    let rows = transaction.query(&statement, &[&chat, &ids]).await?;
    rows.iter().map(message).collect()
}

async fn place_of(client: &Client, chat: Uuid, message: Uuid) -> Result<i64, Fault> {
    let statement =
        client.prepare_cached("select place from message where chat_id = $1 and id = $2").await?;
    let row = client.query_opt(&statement, &[&chat, &message]).await?;
    row.map(|row| row.get(0)).ok_or(Fault::NotFound("message"))
}

/// Columns of a message, for [`message`].
pub(crate) const COLUMNS: &str = "id, place, role, content, tokens, state, metadata, created_at";

/// A message from its columns.
pub(crate) fn message(row: &Row) -> Result<Message, Fault> {
    Ok(Message {
        id: row.get(0),
        place: row.get(1),
        speaker: Speaker::from_name(row.get(2))?,
        content: row.get(3),
        tokens: row.get(4),
        state: State::from_name(row.get(5))?,
        metadata: row.get(6),
        created_at: row.get(7),
    })
}

impl Speaker {
    /// As the database and most contracts have it.
    pub fn name(self) -> &'static str {
        match self {
            Speaker::System => "system",
            Speaker::User => "user",
            Speaker::Assistant => "assistant",
            Speaker::Tool => "tool",
        }
    }

    fn from_name(name: &str) -> Result<Self, Fault> {
        let all = [Speaker::System, Speaker::User, Speaker::Assistant, Speaker::Tool];
        let found = all.into_iter().find(|speaker| speaker.name() == name);
        found.ok_or_else(|| Fault::internal(format!("the database has a role {name}")))
    }
}

impl State {
    /// As the database has it.
    pub fn name(self) -> &'static str {
        match self {
            State::Done => "done",
            State::Cancelled => "cancelled",
            State::Failed => "failed",
        }
    }

    fn from_name(name: &str) -> Result<Self, Fault> {
        let all = [State::Done, State::Cancelled, State::Failed];
        let found = all.into_iter().find(|state| state.name() == name);
        found.ok_or_else(|| Fault::internal(format!("the database has a message state {name}")))
    }
}

/// Messages of one session.
const MESSAGES_MAX: usize = 10_000;

/// Messages of one write.
const BATCH_MAX: usize = 1000;

const CONTENT_BYTES_MAX: usize = 1 << 20;

const METADATA_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests;
