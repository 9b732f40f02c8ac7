//! Making a key, and giving it another secret. The only place that has a key's whole text.

use std::fmt;

use pagoda_wire::api_key::ApiKey;
use pagoda_wire::snapshot::{Change as Published, Kind, Scope};
use pagoda_wire::token::Role;
use serde_json::json;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Hand, Key, Settings, rows};
use crate::database::TENANT;
use crate::database::change::{Change, Event};
use crate::fault::Fault;
use crate::operations::rbac::Reach;
use crate::operations::{Operations, Written, peppers, users};

/// A key with its secret, which nobody can be shown again.
#[derive(Clone)]
pub struct IssuedKey {
    /// The key.
    pub key: Key,
    /// `sk-…`
    pub secret: String,
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Longest grace of a former secret, in seconds.
pub const GRACE_MAX_S: u32 = 30 * 24 * 3600;

/// Keys that a user may have.
const KEYS_MAX: i64 = 1000;

/// Makes a key for a user.
pub async fn create(
    operations: &Operations,
    hand: Hand<'_>,
    owner: Uuid,
    settings: Settings,
) -> Result<Written<IssuedKey>, Fault> {
    hand.may_put(&settings, &[])?;
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, hand.actor).await?;
    let role = owner_role(&change, hand.reach, owner).await?;
    if settings.scopes.contains(&Scope::Admin) && role != Role::Admin {
        let message = "the scope admin is for keys of administrators";
        return Err(Fault::invalid("scopes", message));
    }
    let (pepper, bytes) = peppers::current(operations, &mut change).await?;
    let secret = ApiKey::generate().map_err(Fault::internal)?;
    let mac = secret.mac(&bytes);
    let sql =
        "insert into api_key (id, tenant_id, owner_id, public_id, mac, pepper_id, name, scopes)
               values ($1, $2, $3, $4, $5, $6, $7, $8)";
    let (id, scopes) = (Uuid::now_v7(), rows::scope_texts(&settings.scopes));
    let (public_id, mac, name) =
        (secret.public_id.as_str(), &mac.bytes()[..], settings.name.as_str());
    change
        .transaction()
        .execute(sql, &[&id, &TENANT, &owner, &public_id, &mac, &pepper, &name, &scopes])
        .await?;
    rows::write(&change, id, &settings).await?;
    let key = rows::publish(&mut change, id).await?;
    change.audit(Event::new("key.create", "key", id).with(None, Some(key.settings.shown())));
    let revision = change.commit().await?;
    Ok(Written { value: IssuedKey { key, secret: secret.reveal() }, revision })
}

/// The role of an enabled owner within reach, who stays so until the key is there.
async fn owner_role(change: &Change<'_>, reach: Reach, owner: Uuid) -> Result<Role, Fault> {
    let sql = "select role, (select count(*) from api_key k where k.owner_id = app_user.id)
               from app_user
               where tenant_id = $1 and id = $2 and ($3::uuid is null or id = $3) for update";
    let row = change.transaction().query_opt(sql, &[&TENANT, &owner, &reach.owner()]).await?;
    let row = row.ok_or(Fault::NotFound("user"))?;
    if row.get::<_, i64>(1) >= KEYS_MAX {
        return Err(Fault::Conflict(format!("a user has at most {KEYS_MAX} keys")));
    }
    users::named(&row, 0)
}

/// Gives a key another secret. The one it had works for `grace_s` seconds more, but no longer than
/// it would have; with 0 it is over at once, and so are all before it.
pub async fn rotate(
    operations: &Operations,
    hand: Hand<'_>,
    id: Uuid,
    grace_s: u32,
) -> Result<Written<IssuedKey>, Fault> {
    if grace_s > GRACE_MAX_S {
        let message = format!("the grace must be at most {GRACE_MAX_S} seconds");
        return Err(Fault::invalid("grace", message));
    }
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, hand.actor).await?;
    rows::lock(&change, hand.reach, id).await?;
    let (pepper, bytes) = peppers::current(operations, &mut change).await?;
    let secret = ApiKey::generate().map_err(Fault::internal)?;
    let (public_id, mac) = (secret.public_id, secret.mac(&bytes));
    let former =
        replace_secret(&change, id, (public_id.as_str(), &mac.bytes()[..], pepper)).await?;
    if grace_s == 0 {
        end_former(&mut change, id).await?;
    } else {
        keep_former(&change, id, &former, grace_s).await?;
    }
    let key = rows::publish(&mut change, id).await?;
    let after = json!({ "public_id": public_id.as_str(), "grace_s": grace_s });
    change.audit(Event::new("key.rotate", "key", id).with(None, Some(after)));
    let revision = change.commit().await?;
    Ok(Written { value: IssuedKey { key, secret: secret.reveal() }, revision })
}

/// What proves a secret: its public id, its MAC and the pepper of that.
type Proof<'a> = (&'a str, &'a [u8], Uuid);

/// Answers the row that held the former one.
async fn replace_secret(change: &Change<'_>, id: Uuid, new: Proof<'_>) -> Result<Row, Fault> {
    let sql = "select public_id, mac, pepper_id from api_key where tenant_id = $1 and id = $2";
    let former = change.transaction().query_one(sql, &[&TENANT, &id]).await?;
    let sql = "update api_key set public_id = $3, mac = $4, pepper_id = $5, updated_at = now()
               where tenant_id = $1 and id = $2";
    change.transaction().execute(sql, &[&TENANT, &id, &new.0, &new.1, &new.2]).await?;
    Ok(former)
}

async fn keep_former(
    change: &Change<'_>,
    id: Uuid,
    former: &Row,
    grace_s: u32,
) -> Result<(), Fault> {
    let sql = "select count(*) from api_key where former_of = $1";
    if change.transaction().query_one(sql, &[&id]).await?.get::<_, i64>(0) >= FORMER_MAX {
        let message = "too many former secrets of this key still work; rotate it without grace";
        return Err(Fault::Conflict(message.into()));
    }
    // Settings are those of the key; only the end is its own.
    let sql =
        "insert into api_key (id, former_of, public_id, mac, pepper_id, expires_at, tenant_id,
             owner_id, name, scopes, models, networks, enabled, requests_per_minute,
             tokens_per_minute, budget_nano, budget_window)
         select $2, $1, $3, $4, $5,
             least(coalesce(expires_at, 'infinity'), now() + make_interval(secs => $6)),
             tenant_id, owner_id, name, scopes, models, networks, enabled, requests_per_minute,
             tokens_per_minute, budget_nano, budget_window
         from api_key where id = $1";
    let (public_id, mac, pepper): (&str, &[u8], Uuid) =
        (former.get(0), former.get(1), former.get(2));
    let seconds = f64::from(grace_s);
    change
        .transaction()
        .execute(sql, &[&id, &Uuid::now_v7(), &public_id, &mac, &pepper, &seconds])
        .await?;
    Ok(())
}

async fn end_former(change: &mut Change<'_>, id: Uuid) -> Result<(), Fault> {
    let sql = "delete from api_key where former_of = $1 returning id";
    for row in change.transaction().query(sql, &[&id]).await? {
        change.publish(Published::Remove(Kind::Key, row.get(0)));
    }
    Ok(())
}

/// Former secrets of a key that may work at once.
const FORMER_MAX: i64 = 10;
