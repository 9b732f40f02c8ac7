//! Messages and histories, as the document has them.

use hyper::StatusCode;
use pagoda_http::reply::json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Answered, Part, owner, time};
use crate::fault::Fault;
use crate::http::call::Call;
use crate::operations::history;
use crate::operations::messages::{self, Content, Message, Metadata, NewMessage, Speaker, State};
use crate::operations::window::Window;

#[derive(Serialize)]
struct Shown<'a> {
    id: Uuid,
    session_id: Uuid,
    role: Speaker,
    content: &'a Value,
    created_at: String,
    tokens: Option<i32>,
    metadata_info: &'a Value,
}

#[derive(Serialize)]
struct Turn<'a> {
    role: Speaker,
    content: &'a Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Append {
    role: Speaker,
    content: String,
    tokens: Option<i32>,
    metadata_info: Option<Map<String, Value>>,
}

fn shown(session: Uuid, message: &Message) -> Shown<'_> {
    Shown {
        id: message.id,
        session_id: session,
        role: message.speaker,
        content: &message.content,
        created_at: time(message.created_at),
        tokens: message.tokens,
        metadata_info: &message.metadata,
    }
}

/// `POST /api/sessions/{session_id}/messages`
pub(super) fn append(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Append>().await?;
        let session = context.id("session_id", "session")?;
        let new = NewMessage {
            id: Uuid::now_v7(),
            speaker: body.role,
            content: Content::new(Value::String(body.content))?,
            tokens: body.tokens,
            state: State::Done,
            metadata: Metadata::new(body.metadata_info.unwrap_or_default())?,
        };
        let database = &context.operations.database;
        let (stored, _) = messages::append(database, &owner(&context), session, &[new]).await?;
        let stored = stored.first().ok_or_else(|| Fault::internal("a message was not stored"))?;
        Ok(json(StatusCode::OK, &shown(session, stored)))
    })
}

/// `GET /api/sessions/{session_id}/messages`
pub(super) fn list(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let session = context.id("session_id", "session")?;
        let part: Part = context.query()?;
        let window = Window::skipping(part.skip, part.limit)?;
        let database = &context.operations.database;
        let list = messages::list(database, &owner(&context), session, &window).await?;
        let list: Vec<_> = list.iter().map(|message| shown(session, message)).collect();
        Ok(json(StatusCode::OK, &list))
    })
}

/// `GET /api/sessions/{session_id}/history`
pub(super) fn history(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let session = context.id("session_id", "session")?;
        let database = &context.operations.database;
        let read = history::read(database, &owner(&context), session, None).await?;
        let messages = read.map(|history| history.messages).unwrap_or_default();
        let turns: Vec<_> = messages
            .iter()
            .map(|message| Turn { role: message.speaker, content: &message.content })
            .collect();
        Ok(json(StatusCode::OK, &turns))
    })
}
