//! Rows of keys: finding, listing and writing them, and what data planes know of each.
//!
//! Every query names the tenant and, where a user asks, the owner. Former secrets are rows of
//! their own that no list shows.

use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use pagoda_wire::api_key::{KeyMac, PublicId};
use pagoda_wire::snapshot::{Budget, Change as Published, Item, KeyRecord, Scope};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{Key, Settings};
use crate::database::TENANT;
use crate::database::change::Change;
use crate::fault::Fault;
use crate::operations::Operations;
use crate::operations::fields::{Label, Named, Search};
use crate::operations::page::{List, Records, stream_records};
use crate::operations::rbac::Reach;
use crate::operations::users::{named, networks, texts};
use crate::operations::window::Window;

/// Which keys a list holds.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    /// Of this user.
    pub owner: Option<Uuid>,
    /// In the name.
    pub search: Option<Search>,
    /// That may be used, or not.
    pub enabled: Option<bool>,
}

const COLUMNS: &str = "id, public_id, owner_id, created_at, updated_at, last_used_on, name, enabled, \
     scopes, models, networks, requests_per_minute, tokens_per_minute, budget_nano, budget_window, \
     expires_at, mac, pepper_id, former_of";

/// The key of this id, within reach.
pub async fn find(operations: &Operations, reach: Reach, id: Uuid) -> Result<Key, Fault> {
    one(&operations.database.client().await?, reach, id, "").await
}

/// The key of this id, within reach, which nobody else changes meanwhile.
pub(super) async fn lock(change: &Change<'_>, reach: Reach, id: Uuid) -> Result<Key, Fault> {
    one(change.transaction(), reach, id, "for update").await
}

async fn one(
    client: &impl GenericClient,
    reach: Reach,
    id: Uuid,
    lock: &str,
) -> Result<Key, Fault> {
    let sql = format!(
        "select {COLUMNS} from api_key where tenant_id = $1 and id = $2 and former_of is null
             and ($3::uuid is null or owner_id = $3) {lock}"
    );
    let statement = client.prepare_cached(&sql).await?;
    let row = client.query_opt(&statement, &[&TENANT, &id, &reach.owner()]).await?;
    key(&row.ok_or(Fault::NotFound("key"))?)
}

/// A part of the keys within reach.
pub async fn list(
    operations: &Operations,
    reach: Reach,
    filter: &KeyFilter,
    page: Window<Uuid>,
) -> Result<List<Key>, Fault> {
    let client = operations.database.client().await?;
    let search = filter.search.as_ref().map(Search::as_str);
    let reach = reach.owner();
    let which: [&(dyn ToSql + Sync); 5] =
        [&TENANT, &reach, &filter.owner, &search, &filter.enabled];
    let total = format!("select count(*) from api_key where {FILTER}");
    let total = client.prepare_cached(&total).await?;
    let total = client.query_one(&total, &which).await?.get(0);
    let sql = format!(
        "select {COLUMNS} from api_key where {FILTER} and id < $6 order by id desc
         limit $7 offset $8"
    );
    let rows = client.prepare_cached(&sql).await?;
    let (below, fetch, left_out) = (page.below(), page.fetch(), page.skip());
    let part: [&(dyn ToSql + Sync); 3] = [&below, &fetch, &left_out];
    let rows = client.query(&rows, &[&which[..], &part].concat()).await?;
    let keys = rows.iter().map(key).collect::<Result<_, _>>()?;
    Ok(page.list(keys, total, |key: &Key| key.id))
}

/// Compared character by character: no text of a caller is a pattern.
const FILTER: &str = "tenant_id = $1 and former_of is null
    and ($2::uuid is null or owner_id = $2) and ($3::uuid is null or owner_id = $3)
    and ($4::text is null or strpos(lower(name), $4) > 0)
    and ($5::boolean is null or enabled = $5)";

/// Writes the settings of a key and of its former secrets, which keep an earlier end.
pub(super) async fn write(change: &Change<'_>, id: Uuid, settings: &Settings) -> Result<(), Fault> {
    let sql = "update api_key set name = $3, enabled = $4, scopes = $5, models = $6, networks = $7,
             requests_per_minute = $8, tokens_per_minute = $9, budget_nano = $10,
             budget_window = $11, updated_at = now(),
             expires_at = case when former_of is null then $12 else least(expires_at, $12) end
         where tenant_id = $1 and (id = $2 or former_of = $2)";
    let limit = |number: Option<u64>| number.map(i64::try_from).transpose();
    let too_much =
        |field: &'static str| move |_| Fault::invalid(field, format!("{field} is too large"));
    let requests = settings.requests_per_minute.map(i32::try_from).transpose();
    let requests = requests.map_err(too_much("requests_per_minute"))?;
    let tokens = limit(settings.tokens_per_minute).map_err(too_much("tokens_per_minute"))?;
    let budget = limit(settings.budget.map(|budget| budget.nano)).map_err(too_much("budget"))?;
    let values: [&(dyn ToSql + Sync); 12] = [
        &TENANT,
        &id,
        &settings.name.as_str(),
        &settings.enabled,
        &scope_texts(&settings.scopes),
        &settings.models,
        &texts(&settings.networks),
        &requests,
        &tokens,
        &budget,
        &settings.budget.map(|budget| budget.window.text()),
        &settings.expires_at,
    ];
    change.transaction().execute(sql, &values).await?;
    Ok(())
}

/// Tells data planes of a key and its former secrets as they are now. Answers the key.
pub(super) async fn publish(change: &mut Change<'_>, id: Uuid) -> Result<Key, Fault> {
    let sql = format!(
        "select {COLUMNS} from api_key where tenant_id = $1 and (id = $2 or former_of = $2)"
    );
    let mut found = None;
    for row in change.transaction().query(&sql, &[&TENANT, &id]).await? {
        change.publish(Published::Put(Box::new(Item::Key(record(&row)?))));
        if row.get::<_, Uuid>(0) == id {
            found = Some(key(&row)?);
        }
    }
    found.ok_or(Fault::NotFound("key"))
}

/// All keys and former secrets that may be used, for a full snapshot.
pub async fn records(transaction: &tokio_postgres::Transaction<'_>) -> Result<Records, Fault> {
    // One that has expired stays for a day, so that its holder is told so.
    let sql = format!(
        "select {COLUMNS} from api_key
         where expires_at is null or expires_at > now() - interval '1 day'"
    );
    stream_records(transaction, &sql, |row| Ok(Item::Key(record(row)?))).await
}

/// What data planes know of a key.
fn record(row: &Row) -> Result<KeyRecord, Fault> {
    let Key { id, public_id, owner, settings, .. } = key(row)?;
    let mac = KeyMac::from_bytes(row.get(16));
    Ok(KeyRecord {
        id,
        public_id,
        mac: mac.ok_or_else(|| Fault::internal("the MAC of a key has another length"))?,
        pepper: row.get(17),
        owner,
        limits: row.get::<_, Option<Uuid>>(18).unwrap_or(id),
        enabled: settings.enabled,
        scopes: settings.scopes,
        models: settings.models,
        networks: settings.networks,
        expires_at: settings.expires_at.map(Timestamp::as_second),
        requests_per_minute: settings.requests_per_minute,
        tokens_per_minute: settings.tokens_per_minute,
        budget: settings.budget,
    })
}

/// From a row of [`COLUMNS`].
fn key(row: &Row) -> Result<Key, Fault> {
    let odd = || Fault::internal("a row of a key cannot be read");
    let scopes: Vec<String> = row.get(8);
    let budget = match row.get::<_, Option<i64>>(13) {
        Some(nano) => Some(Budget { nano: nano.unsigned_abs(), window: named(row, 14)? }),
        None => None,
    };
    let settings = Settings {
        name: Label::parse("name", row.get(6)).map_err(|_| odd())?,
        enabled: row.get(7),
        scopes: scopes
            .iter()
            .map(|text| Scope::parse(text).ok_or_else(odd))
            .collect::<Result<_, _>>()?,
        models: row.get(9),
        networks: networks(row, 10)?,
        requests_per_minute: row.get::<_, Option<i32>>(11).map(i32::unsigned_abs),
        tokens_per_minute: row.get::<_, Option<i64>>(12).map(i64::unsigned_abs),
        budget,
        expires_at: row.get(15),
    };
    Ok(Key {
        id: row.get(0),
        public_id: PublicId::parse(row.get(1)).ok_or_else(odd)?,
        owner: row.get(2),
        created_at: row.get(3),
        updated_at: row.get(4),
        last_used_on: row.get(5),
        settings,
    })
}

/// Scopes for a row of ours.
pub(super) fn scope_texts(scopes: &[Scope]) -> Vec<&'static str> {
    scopes.iter().map(|scope| scope.text()).collect()
}
