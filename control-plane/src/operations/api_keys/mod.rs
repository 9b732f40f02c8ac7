//! API keys: made, changed, rotated and ended. The secret is shown once, to whom it is made for.
//!
//! A key keeps its id for life: rotation gives it a new secret, and the former one becomes a row
//! beside it that works until the grace ends, uses up the same limits and budget, and changes and
//! goes with its key. Another's key is not there.

/// Making a key, and giving it another secret.
pub mod issue;

/// Rows, lists and what data planes know.
pub mod rows;

use ipnet::IpNet;
use jiff::Timestamp;
use pagoda_wire::api_key::PublicId;
use pagoda_wire::snapshot::{Budget, Change as Published, Kind, Revision, Scope};
use pagoda_wire::token::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fields::{Label, Named};
use super::rbac::{Reach, may_grant};
use super::{Operations, Written, users};
use crate::database::TENANT;
use crate::database::change::{Actor, Change, Event};
use crate::fault::Fault;

/// A key. Knows no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub id: Uuid,
    /// What its text begins with, behind `sk-`.
    pub public_id: PublicId,
    /// Whose key.
    pub owner: Uuid,
    /// Since when.
    pub created_at: Timestamp,
    /// Last written.
    pub updated_at: Timestamp,
    /// The last day on which a request came with it.
    pub last_used_on: Option<jiff::civil::Date>,
    /// What may be changed.
    pub settings: Settings,
}

/// What a key may be used for, by whom and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What people call it.
    pub name: Label,
    /// May not be used while false.
    pub enabled: bool,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// Names of models that it may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// May be used from there only; empty is anywhere.
    pub networks: Vec<IpNet>,
    /// Requests in any minute; `None` is the owner's class.
    pub requests_per_minute: Option<u32>,
    /// Tokens in any minute, prompts and answers.
    pub tokens_per_minute: Option<u64>,
    /// What may be spent.
    pub budget: Option<Budget>,
    /// From then on it is worth nothing.
    pub expires_at: Option<Timestamp>,
}

/// What becomes of a key. `None` leaves it as it is; an inner `None` takes a bound away.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "as in Settings")]
pub struct KeyUpdate {
    pub name: Option<Label>,
    pub enabled: Option<bool>,
    pub scopes: Option<Vec<Scope>>,
    pub models: Option<Option<Vec<String>>>,
    pub networks: Option<Vec<IpNet>>,
    pub requests_per_minute: Option<Option<u32>>,
    pub tokens_per_minute: Option<Option<u64>>,
    pub budget: Option<Option<Budget>>,
    pub expires_at: Option<Option<Timestamp>>,
}

/// Who changes a key: whose keys it may touch, and what it may put on them.
#[derive(Clone, Copy, Debug)]
pub struct Hand<'a> {
    /// For the audit.
    pub actor: &'a Actor,
    /// Whose keys.
    pub reach: Reach,
    /// The role that says which scopes may be granted.
    pub role: Role,
}

impl Settings {
    /// A key for inference, without bounds of its own.
    pub fn named(name: Label) -> Self {
        Settings {
            name,
            enabled: true,
            scopes: vec![Scope::Inference, Scope::Sessions],
            models: None,
            networks: Vec::new(),
            requests_per_minute: None,
            tokens_per_minute: None,
            budget: None,
            expires_at: None,
        }
    }

    fn changed(&self, update: KeyUpdate) -> Self {
        Settings {
            name: update.name.unwrap_or_else(|| self.name.clone()),
            enabled: update.enabled.unwrap_or(self.enabled),
            scopes: update.scopes.unwrap_or_else(|| self.scopes.clone()),
            models: update.models.unwrap_or_else(|| self.models.clone()),
            networks: update.networks.unwrap_or_else(|| self.networks.clone()),
            requests_per_minute: update.requests_per_minute.unwrap_or(self.requests_per_minute),
            tokens_per_minute: update.tokens_per_minute.unwrap_or(self.tokens_per_minute),
            budget: update.budget.unwrap_or(self.budget),
            expires_at: update.expires_at.unwrap_or(self.expires_at),
        }
    }

    /// What the audit shows.
    fn shown(&self) -> Value {
        json!({
            "name": self.name.as_str(), "enabled": self.enabled, "models": self.models,
            "scopes": self.scopes.iter().map(|scope| scope.text()).collect::<Vec<_>>(),
            "networks": users::texts(&self.networks),
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute, "budget": self.budget,
            "expires_at": self.expires_at.map(|at| at.to_string()),
        })
    }
}

impl Hand<'_> {
    /// Whether this hand may put these on a key: those it has there already stay.
    fn may_put(&self, settings: &Settings, already: &[Scope]) -> Result<(), Fault> {
        let none = |number: Option<u64>| number == Some(0);
        if settings.scopes.is_empty() {
            return Err(Fault::invalid("scopes", "scopes must not be empty"));
        }
        let foreign = |scope: &&Scope| !already.contains(scope) && !may_grant(self.role, **scope);
        if settings.scopes.iter().find(foreign).is_some() {
            return Err(Fault::Forbidden);
        }
        if none(settings.requests_per_minute.map(Into::into)) || none(settings.tokens_per_minute) {
            return Err(Fault::invalid("limits", "limits must be more than 0"));
        }
        Ok(())
    }
}

/// Changes a key, and its former secrets with it.
pub async fn update(
    operations: &Operations,
    hand: Hand<'_>,
    id: Uuid,
    update: KeyUpdate,
) -> Result<Written<Key>, Fault> {
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, hand.actor).await?;
    let before = rows::lock(&change, hand.reach, id).await?;
    let after = before.settings.changed(update);
    hand.may_put(&after, &before.settings.scopes)?;
    rows::write(&change, id, &after).await?;
    let key = rows::publish(&mut change, id).await?;
    let event = Event::new("key.update", "key", id);
    change.audit(event.with(Some(before.settings.shown()), Some(key.settings.shown())));
    let revision = change.commit().await?;
    Ok(Written { value: key, revision })
}

/// Ends a key for good, and its former secrets with it.
pub async fn delete(
    operations: &Operations,
    hand: Hand<'_>,
    id: Uuid,
) -> Result<Option<Revision>, Fault> {
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, hand.actor).await?;
    let before = rows::lock(&change, hand.reach, id).await?;
    let sql = "delete from api_key where tenant_id = $1 and (id = $2 or former_of = $2)
               returning id";
    for row in change.transaction().query(sql, &[&TENANT, &id]).await? {
        change.publish(Published::Remove(Kind::Key, row.get(0)));
    }
    let event = Event::new("key.delete", "key", id);
    change.audit(event.with(Some(before.settings.shown()), None));
    change.commit().await
}

/// Forgets former secrets whose grace is over; answers how many.
pub async fn sweep(operations: &Operations) -> Result<usize, Fault> {
    let actor = Actor::system();
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, &actor).await?;
    let sql = "delete from api_key where former_of is not null and expires_at < now()
               returning id, former_of";
    let gone = change.transaction().query(sql, &[]).await?;
    if gone.is_empty() {
        return Ok(0);
    }
    for row in &gone {
        change.publish(Published::Remove(Kind::Key, row.get(0)));
        change.audit(Event::new("key.grace_end", "key", row.get::<_, Uuid>(1)));
    }
    change.commit().await?;
    Ok(gone.len())
}
