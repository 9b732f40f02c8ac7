//! One administrative write: rows, audit and what data planes must learn, in one transaction.
//!
//! The only way to write what is audited or published. A change that audits nothing is not
//! committed, so no operation can forget it. The revision's row is locked last and for a moment:
//! revisions have no gaps and stand in the order of commits.

use std::net::IpAddr;

use deadpool_postgres::Transaction;
use pagoda_wire::snapshot;
use serde_json::Value;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{Client, TENANT};
use crate::fault::Fault;

/// Who does something, for the audit.
#[derive(Clone, Debug)]
pub struct Actor {
    /// What kind of somebody.
    pub kind: ActorKind,
    /// The user or the key.
    pub id: Option<Uuid>,
    /// The login that the credential came from.
    pub login: Option<Uuid>,
    /// Where the request came from.
    pub address: Option<IpAddr>,
    /// Its id.
    pub request_id: String,
}

/// What kind of somebody does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorKind {
    /// A user with a token.
    User,
    /// An API key.
    Key,
    /// Whoever has the command line.
    Operator,
    /// The control plane itself.
    System,
    /// Nobody known, as at a login.
    Anonymous,
}

impl ActorKind {
    fn name(self) -> &'static str {
        match self {
            ActorKind::User => "user",
            ActorKind::Key => "key",
            ActorKind::Operator => "operator",
            ActorKind::System => "system",
            ActorKind::Anonymous => "anonymous",
        }
    }
}

impl Actor {
    /// The control plane itself.
    pub fn system() -> Self {
        Actor {
            kind: ActorKind::System,
            id: None,
            login: None,
            address: None,
            request_id: String::new(),
        }
    }

    /// Whoever has the command line.
    pub fn operator() -> Self {
        Actor { kind: ActorKind::Operator, ..Self::system() }
    }
}

/// What happened to what. Without secrets: whoever audits may read it.
#[derive(Clone, Debug)]
pub struct Event {
    /// `user.create`, `login.refuse`, …
    pub action: &'static str,
    /// `user`, `key`, …
    pub object_kind: &'static str,
    /// Its id, or what was meant as one.
    pub object_id: String,
    /// What it was,
    pub before: Option<Value>,
    /// and what it became.
    pub after: Option<Value>,
}

impl Event {
    /// Something happened to an object.
    pub fn new(action: &'static str, object_kind: &'static str, id: impl ToString) -> Self {
        Event { action, object_kind, object_id: id.to_string(), before: None, after: None }
    }

    /// What the object was and became.
    pub fn with(mut self, before: Option<Value>, after: Option<Value>) -> Self {
        (self.before, self.after) = (before, after);
        self
    }
}

/// A write that is not committed yet. Dropped, it never was.
pub struct Change<'a> {
    transaction: Transaction<'a>,
    actor: &'a Actor,
    events: Vec<Event>,
    published: Vec<snapshot::Change>,
}

impl<'a> Change<'a> {
    /// Begins.
    pub async fn begin(client: &'a mut Client, actor: &'a Actor) -> Result<Change<'a>, Fault> {
        let transaction = client.transaction().await?;
        Ok(Change { transaction, actor, events: Vec::new(), published: Vec::new() })
    }

    /// For statements of the operation.
    pub fn transaction(&self) -> &Transaction<'a> {
        &self.transaction
    }

    /// What the audit will say.
    pub fn audit(&mut self, event: Event) {
        self.events.push(event);
    }

    /// What data planes will learn.
    pub fn publish(&mut self, change: snapshot::Change) {
        self.published.push(change);
    }

    /// Commits. Answers the revision that data planes must reach to know of it, if any must.
    pub async fn commit(self) -> Result<Option<snapshot::Revision>, Fault> {
        if self.events.is_empty() {
            return Err(Fault::internal("a change without an audit is not written"));
        }
        for event in &self.events {
            write_event(&self.transaction, self.actor, event).await?;
        }
        let revision = match self.published.is_empty() {
            true => None,
            false => Some(publish(&self.transaction, &self.published).await?),
        };
        self.transaction.commit().await?;
        Ok(revision)
    }
}

async fn write_event(
    transaction: &Transaction<'_>,
    actor: &Actor,
    event: &Event,
) -> Result<(), Fault> {
    let statement = transaction
        .prepare_cached(
            "insert into audit_log (id, tenant_id, actor_kind, actor_id, login_id, address,
                 request_id, action, object_kind, object_id, before, after)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .await?;
    let address = actor.address.as_ref();
    transaction
        .execute(
            &statement,
            &[
                &Uuid::now_v7(),
                &TENANT,
                &actor.kind.name(),
                &actor.id,
                &actor.login,
                &address,
                &actor.request_id,
                &event.action,
                &event.object_kind,
                &event.object_id,
                &event.before,
                &event.after,
            ],
        )
        .await?;
    Ok(())
}

/// Takes the next revision. Whoever listens is woken by the commit; whoever missed it looks anyway.
async fn publish(
    transaction: &Transaction<'_>,
    changes: &[snapshot::Change],
) -> Result<snapshot::Revision, Fault> {
    let row = transaction
        .query_one("update control_revision set revision = revision + 1 returning revision", &[])
        .await?;
    let revision: i64 = row.get(0);
    transaction
        .execute(
            "insert into change_log (revision, changes) values ($1, $2)",
            &[&revision, &Json(changes)],
        )
        .await?;
    transaction
        .execute("select pg_notify('pagoda_revision', $1)", &[&revision.to_string()])
        .await?;
    u64::try_from(revision).map_err(Fault::internal)
}
