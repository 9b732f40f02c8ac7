//! Upstreams: somebody else's APIs, and our credentials there.
//!
//! A credential is typed in for one origin and goes to that one alone. Whoever changes the scheme,
//! host or port of an upstream has an upstream without a credential until it is typed in again. A
//! credential never comes out of here: answers and the audit say whether there is one.

use jiff::Timestamp;
use pagoda_wire::base_url::{BaseUrl, Reach};
use pagoda_wire::credential::{Credential, CredentialCipher};
use pagoda_wire::snapshot::{self, Item, Kind, Provider, SealedCredential, UpstreamRecord};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::database::change::{Actor, Change, Event};
use crate::database::{Database, TENANT};
use crate::fault::Fault;
use crate::operations::Written;
use crate::operations::page::List;
use crate::operations::window::Window;

/// An upstream, as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The upstream.
    pub id: Uuid,
    /// Its wire format.
    pub provider: Provider,
    /// Where it is.
    pub base_url: String,
    /// Whether a credential goes there.
    pub has_credential: bool,
    /// Milliseconds until the first byte of an answer must be there.
    pub timeout_ms: i64,
    /// When it was made,
    pub created_at: Timestamp,
    /// and when something of it changed.
    pub updated_at: Timestamp,
}

/// An upstream to make.
#[derive(Clone, Debug)]
pub struct NewUpstream {
    /// Its wire format; not `local`.
    pub provider: Provider,
    /// Where it is.
    pub base_url: BaseUrl,
    /// Our credential there.
    pub credential: Option<Credential>,
    /// Milliseconds until the first byte of an answer must be there; `None` is a minute.
    pub timeout_ms: Option<i64>,
}

/// What may be changed of an upstream; `None` stays.
#[derive(Clone, Debug, Default)]
pub struct UpstreamChange {
    /// Where it is. Another origin ends the credential.
    pub base_url: Option<BaseUrl>,
    /// Our credential there; `Some(None)` removes it.
    pub credential: Option<Option<Credential>>,
    /// Milliseconds until the first byte of an answer must be there.
    pub timeout_ms: Option<i64>,
}

/// What upstreams are checked and sealed with.
#[derive(Clone, Copy, Debug)]
pub struct Border<'a> {
    /// Which addresses may be called.
    pub reach: &'a Reach,
    /// What seals credentials.
    pub cipher: &'a CredentialCipher,
}

/// Makes an upstream.
pub async fn create(
    database: &Database,
    border: Border<'_>,
    actor: &Actor,
    new: NewUpstream,
) -> Result<Written<Upstream>, Fault> {
    if new.provider == Provider::Local {
        return Err(Fault::invalid("provider", "a local model has no upstream"));
    }
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let id = Uuid::now_v7();
    let timeout_ms = checked_timeout(new.timeout_ms.unwrap_or(TIMEOUT_MS))?;
    let sealed = border.sealed(id, &new.base_url, new.credential.as_ref())?;
    let (credential, origin, key_id) = columns(sealed);
    let row = change
        .transaction()
        .query_one(
            &format!(
                "insert into upstream (id, tenant_id, provider, base_url, timeout_ms,
                     credential, credential_origin, credential_key_id)
                 values ($1, $2, $3, $4, $5, $6, $7, $8) returning {COLUMNS}"
            ),
            &[
                &id,
                &TENANT,
                &new.provider.name(),
                &new.base_url.to_string(),
                &timeout_ms,
                &credential,
                &origin,
                &key_id,
            ],
        )
        .await?;
    let made = upstream(&row)?;
    let event = Event::new("upstream.create", "upstream", id);
    change.audit(event.with(None, Some(told(&made))));
    change.publish(snapshot::Change::Put(Box::new(Item::Upstream(record(&row)?))));
    Ok(Written { revision: change.commit().await?, value: made })
}

/// Changes an upstream.
pub async fn update(
    database: &Database,
    border: Border<'_>,
    actor: &Actor,
    id: Uuid,
    wanted: UpstreamChange,
) -> Result<Written<Upstream>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let found = change
        .transaction()
        .query_opt(
            &format!("select {COLUMNS} from upstream where tenant_id = $1 and id = $2 for update"),
            &[&TENANT, &id],
        )
        .await?
        .ok_or(Fault::NotFound("upstream"))?;
    let (before, known) = (upstream(&found)?, record(&found)?);
    let base_url = match wanted.base_url {
        Some(url) => url,
        None => BaseUrl::parse(&before.base_url).map_err(Fault::internal)?,
    };
    let sealed = match wanted.credential {
        Some(typed) => border.sealed(id, &base_url, typed.as_ref())?,
        None => {
            border.check(&base_url)?;
            known.credential.filter(|sealed| sealed.origin == base_url.origin())
        }
    };
    let (credential, origin, key_id) = columns(sealed);
    let timeout_ms = checked_timeout(wanted.timeout_ms.unwrap_or(before.timeout_ms))?;
    let row = change
        .transaction()
        .query_one(
            &format!(
                "update upstream set base_url = $3, timeout_ms = $4, credential = $5,
                     credential_origin = $6, credential_key_id = $7, updated_at = now()
                 where tenant_id = $1 and id = $2 returning {COLUMNS}"
            ),
            &[&TENANT, &id, &base_url.to_string(), &timeout_ms, &credential, &origin, &key_id],
        )
        .await?;
    let after = upstream(&row)?;
    let event = Event::new("upstream.update", "upstream", id);
    change.audit(event.with(Some(told(&before)), Some(told(&after))));
    change.publish(snapshot::Change::Put(Box::new(Item::Upstream(record(&row)?))));
    Ok(Written { revision: change.commit().await?, value: after })
}

/// Removes an upstream that no model uses.
pub async fn delete(database: &Database, actor: &Actor, id: Uuid) -> Result<Written<()>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let sql = format!("delete from upstream where tenant_id = $1 and id = $2 returning {COLUMNS}");
    let gone = change.transaction().query_opt(&sql, &[&TENANT, &id]).await;
    let gone =
        gone.map_err(|error| match error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) {
            true => Fault::Conflict("a model uses this upstream".into()),
            false => error.into(),
        })?;
    let before = upstream(&gone.ok_or(Fault::NotFound("upstream"))?)?;
    let event = Event::new("upstream.delete", "upstream", id);
    change.audit(event.with(Some(told(&before)), None));
    change.publish(snapshot::Change::Remove(Kind::Upstream, id));
    Ok(Written { revision: change.commit().await?, value: () })
}

/// Upstreams, the newest first.
pub async fn list(database: &Database, page: Window<Uuid>) -> Result<List<Upstream>, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from upstream where tenant_id = $1 and id < $2
             order by id desc limit $3 offset $4"
        ))
        .await?;
    let rows =
        client.query(&statement, &[&TENANT, &page.below(), &page.fetch(), &page.skip()]).await?;
    let sql = "select count(*) from upstream where tenant_id = $1";
    let total = client.query_one(sql, &[&TENANT]).await?.get(0);
    let upstreams = rows.iter().map(upstream).collect::<Result<_, _>>()?;
    Ok(page.list(upstreams, total, |upstream: &Upstream| upstream.id))
}

/// One upstream.
pub async fn find(database: &Database, id: Uuid) -> Result<Upstream, Fault> {
    let client = database.client().await?;
    let sql = format!("select {COLUMNS} from upstream where tenant_id = $1 and id = $2");
    let row = client.query_opt(&sql, &[&TENANT, &id]).await?;
    upstream(&row.ok_or(Fault::NotFound("upstream"))?)
}

/// What a full snapshot holds of upstreams.
pub async fn records(client: &impl GenericClient) -> Result<Vec<Item>, Fault> {
    let rows = client.query(&format!("select {COLUMNS} from upstream"), &[]).await?;
    rows.iter().map(|row| record(row).map(Item::Upstream)).collect()
}

impl Border<'_> {
    /// A credential for one upstream at one place, once that place may be called at all.
    fn sealed(
        &self,
        id: Uuid,
        url: &BaseUrl,
        credential: Option<&Credential>,
    ) -> Result<Option<SealedCredential>, Fault> {
        self.check(url)?;
        let sealed = credential.map(|plain| self.cipher.seal(id, &url.origin(), plain));
        sealed.transpose().map_err(Fault::internal)
    }

    fn check(&self, url: &BaseUrl) -> Result<(), Fault> {
        self.reach.check(url).map_err(|refused| Fault::invalid("base_url", refused.to_string()))
    }
}

fn checked_timeout(timeout_ms: i64) -> Result<i64, Fault> {
    match (1..=3_600_000).contains(&timeout_ms) {
        true => Ok(timeout_ms),
        false => Err(Fault::invalid("timeout_ms", "timeout_ms must be 1 to 3600000")),
    }
}

type Columns = (Option<String>, Option<String>, Option<String>);

fn columns(sealed: Option<SealedCredential>) -> Columns {
    match sealed {
        Some(SealedCredential { sealed, key_id, origin }) => {
            (Some(sealed), Some(origin), Some(key_id))
        }
        None => (None, None, None),
    }
}

/// What the audit tells of an upstream.
fn told(upstream: &Upstream) -> Value {
    json!({
        "provider": upstream.provider,
        "base_url": upstream.base_url,
        "has_credential": upstream.has_credential,
        "timeout_ms": upstream.timeout_ms,
    })
}

const COLUMNS: &str = "id, provider, base_url, credential, credential_origin, credential_key_id, \
     timeout_ms, created_at, updated_at";

fn upstream(row: &Row) -> Result<Upstream, Fault> {
    Ok(Upstream {
        id: row.get(0),
        provider: provider(row.get(1))?,
        base_url: row.get(2),
        has_credential: row.get::<_, Option<&str>>(3).is_some(),
        timeout_ms: row.get(6),
        created_at: row.get(7),
        updated_at: row.get(8),
    })
}

fn record(row: &Row) -> Result<UpstreamRecord, Fault> {
    let columns: Columns = (row.get(3), row.get(4), row.get(5));
    let credential = match columns {
        (Some(sealed), Some(origin), Some(key_id)) => {
            Some(SealedCredential { sealed, key_id, origin })
        }
        _ => None,
    };
    Ok(UpstreamRecord {
        id: row.get(0),
        provider: provider(row.get(1))?,
        base_url: row.get(2),
        credential,
        timeout_ms: u64::try_from(row.get::<_, i64>(6)).map_err(Fault::internal)?,
    })
}

/// A provider as the database has it.
pub(crate) fn provider(name: &str) -> Result<Provider, Fault> {
    let found = Provider::ALL.into_iter().find(|provider| provider.name() == name);
    found.ok_or_else(|| Fault::internal(format!("the database has a provider {name}")))
}

/// Unless the upstream has its own.
const TIMEOUT_MS: i64 = 60_000;

#[cfg(test)]
mod tests;
