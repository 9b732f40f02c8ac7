//! Sessions, as the document has them.

use hyper::StatusCode;
use pagoda_http::reply::json;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{Answered, Part, owner, time};
use crate::http::call::Call;
use crate::operations::chats::{self, Chat, ChatChange, NewChat, Title};
use crate::operations::text::field;
use crate::operations::window::Window;

#[derive(Serialize)]
struct Session<'a> {
    id: Uuid,
    title: &'a str,
    created_at: String,
    updated_at: String,
    is_active: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    title: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    title: Option<String>,
    is_active: Option<bool>,
}

#[derive(Deserialize)]
struct Filter {
    #[serde(default = "yes")]
    active_only: bool,
}

fn yes() -> bool {
    true
}

fn session(chat: &Chat) -> Session<'_> {
    Session {
        id: chat.id,
        title: &chat.title,
        created_at: time(chat.created_at),
        updated_at: time(chat.updated_at),
        is_active: chat.is_active,
    }
}

/// `POST /api/sessions`
pub(super) fn create(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Create>().await?;
        let title: Title = field("title", body.title.unwrap_or_else(|| UNTITLED.into()))?;
        let new = NewChat { title, ..NewChat::default() };
        let made = chats::create(&context.operations.database, &owner(&context), new).await?;
        Ok(json(StatusCode::OK, &session(&made)))
    })
}

/// `GET /api/sessions`
pub(super) fn list(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let part: Part = context.query()?;
        let filter: Filter = context.query()?;
        let window = Window::skipping(part.skip, part.limit)?;
        let database = &context.operations.database;
        let list = chats::list(database, &owner(&context), filter.active_only, &window).await?;
        Ok(json(StatusCode::OK, &list.iter().map(session).collect::<Vec<_>>()))
    })
}

/// `GET /api/sessions/{session_id}`
pub(super) fn find(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let id = context.id("session_id", "session")?;
        let found = chats::find(&context.operations.database, &owner(&context), id).await?;
        Ok(json(StatusCode::OK, &session(&found)))
    })
}

/// `PUT /api/sessions/{session_id}`
pub(super) fn update(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Update>().await?;
        let id = context.id("session_id", "session")?;
        let title = body.title.map(|title| field("title", title)).transpose()?;
        let change = ChatChange { title, is_active: body.is_active };
        let database = &context.operations.database;
        let changed = chats::update(database, &owner(&context), id, change).await?;
        Ok(json(StatusCode::OK, &session(&changed)))
    })
}

/// `DELETE /api/sessions/{session_id}`
pub(super) fn delete(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let id = context.id("session_id", "session")?;
        chats::delete(&context.operations.database, &owner(&context), id).await?;
        Ok(json(StatusCode::OK, &json!({ "message": "会话删除成功" })))
    })
}

/// What the document calls a session that has no name yet.
const UNTITLED: &str = "新会话";
