//! What access tokens are signed with: one key that signs, one that will, and those that did.
//!
//! The next key is published a token's life before it signs, so that every plane knows it; a
//! retired one is published until its last token is over. Seeds are sealed under the installation's
//! secret and never leave this module.

use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::{Change as Published, Item, Kind, Revision, SigningKeyRecord};
use pagoda_wire::token::{LIFE_MAX_S, PublicKey, SKEW_S, Signer};
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::Operations;
use super::page::{Records, stream_records};
use crate::database::change::{Actor, Change, Event};
use crate::fault::Fault;

/// Seconds for which the next key is published before it signs: a token's life and a minute.
const LEAD_S: i64 = LIFE_MAX_S + 60;

/// The signer of now, and what time it is there, in Unix seconds.
pub(super) async fn active(
    operations: &Operations,
    transaction: &Transaction<'_>,
) -> Result<(Signer, i64), Fault> {
    let sql = "select id, sealed_seed, floor(extract(epoch from clock_timestamp()))::bigint
               from signing_key where state = 'active'";
    let row = transaction.query_opt(sql, &[]).await?;
    let row = row.ok_or_else(|| Fault::internal("there is no key to sign tokens with"))?;
    let plain = operations.secrets.unseal(row.get(1), &sealed_for(row.get(0)));
    let seed: Option<[u8; 32]> = plain.and_then(|plain| plain.try_into().ok());
    let seed = seed.ok_or_else(|| {
        Fault::internal("the signing key is not under this installation's secret")
    })?;
    let signer = Signer::from_seed(&seed.into()).map_err(Fault::internal)?;
    Ok((signer, row.get(2)))
}

/// Public keys under which a token may be taken, newest first: the published key set.
pub async fn published(operations: &Operations) -> Result<Vec<PublicKey>, Fault> {
    let client = operations.database.client().await?;
    let sql = "select kid, public_x from signing_key
               where not_after is null or not_after > now() order by id desc";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| PublicKey { kid: row.get(0), x: row.get(1) }).collect())
}

/// Does what is due: makes the first key, the next one, lets it sign, forgets what is over. Any
/// number of instances may do this at any time; it answers `None` when nothing was due.
pub async fn tend(operations: &Operations) -> Result<Option<Revision>, Fault> {
    let actor = Actor::system();
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, &actor).await?;
    lock(&change).await?;
    let mut is_due = false;
    let life = operations.policy.signing_key_life_s;
    match ages(&change).await? {
        Ages { active: None, .. } => {
            insert(operations, &mut change, "active").await?;
            is_due = true;
        }
        Ages { active: Some(age), next: None } if age >= life - LEAD_S => {
            insert(operations, &mut change, "next").await?;
            is_due = true;
        }
        Ages { active: Some(age), next: Some(known) } if age >= life && known >= LEAD_S => {
            retire(&mut change).await?;
            promote(&mut change).await?;
            is_due = true;
        }
        Ages { .. } => {}
    }
    is_due |= forget(&mut change, "not_after < now()").await?;
    if is_due { change.commit().await } else { Ok(None) }
}

/// Ends every key that there is, at once: somebody else may have a seed. All access tokens end.
pub async fn replace(operations: &Operations, actor: &Actor) -> Result<Option<Revision>, Fault> {
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    lock(&change).await?;
    forget(&mut change, "true").await?;
    insert(operations, &mut change, "active").await?;
    change.commit().await
}

/// Seconds since keys were made.
struct Ages {
    active: Option<i64>,
    next: Option<i64>,
}

async fn ages(change: &Change<'_>) -> Result<Ages, Fault> {
    let sql = "select max(floor(extract(epoch from now() - created_at))::bigint)
                          filter (where state = 'active'),
                      max(floor(extract(epoch from now() - created_at))::bigint)
                          filter (where state = 'next')
               from signing_key";
    let row = change.transaction().query_one(sql, &[]).await?;
    Ok(Ages { active: row.get(0), next: row.get(1) })
}

/// One instance at a time. The lock ends with the transaction.
async fn lock(change: &Change<'_>) -> Result<(), Fault> {
    change.transaction().execute("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    Ok(())
}

async fn insert(
    operations: &Operations,
    change: &mut Change<'_>,
    state: &'static str,
) -> Result<(), Fault> {
    let (id, seed) = (Uuid::now_v7(), Secret::random().map_err(Fault::internal)?);
    let key = Signer::from_seed(&seed).map_err(Fault::internal)?.public_key();
    let sealed = operations.secrets.seal(seed.bytes(), &sealed_for(id)).map_err(Fault::internal)?;
    let sql = "insert into signing_key (id, kid, public_x, sealed_seed, state)
               values ($1, $2, $3, $4, $5)";
    change.transaction().execute(sql, &[&id, &key.kid, &key.x, &sealed, &state]).await?;
    change.audit(Event::new("signing_key.create", "signing_key", id));
    let record = SigningKeyRecord { id, key, not_after: None };
    change.publish(Published::Put(Box::new(Item::SigningKey(record))));
    Ok(())
}

async fn retire(change: &mut Change<'_>) -> Result<(), Fault> {
    let sql = format!(
        "update signing_key set state = 'retired', not_after = now() + make_interval(secs => {})
         where state = 'active' returning {COLUMNS}",
        LIFE_MAX_S + SKEW_S
    );
    let row = change.transaction().query_one(&sql, &[]).await?;
    change.audit(Event::new("signing_key.retire", "signing_key", row.get::<_, Uuid>(0)));
    change.publish(Published::Put(Box::new(Item::SigningKey(record(&row)))));
    Ok(())
}

async fn promote(change: &mut Change<'_>) -> Result<(), Fault> {
    // Its age begins anew: it signs from now on.
    let sql = "update signing_key set state = 'active', created_at = now()
               where state = 'next' returning id";
    let row = change.transaction().query_one(sql, &[]).await?;
    change.audit(Event::new("signing_key.activate", "signing_key", row.get::<_, Uuid>(0)));
    Ok(())
}

async fn forget(change: &mut Change<'_>, which: &str) -> Result<bool, Fault> {
    let sql = format!("delete from signing_key where {which} returning id");
    let gone = change.transaction().query(&sql, &[]).await?;
    for row in &gone {
        let id: Uuid = row.get(0);
        change.audit(Event::new("signing_key.delete", "signing_key", id));
        change.publish(Published::Remove(Kind::SigningKey, id));
    }
    Ok(!gone.is_empty())
}

/// All keys whose tokens may be alive, and the next one, for a full snapshot.
pub async fn records(transaction: &Transaction<'_>) -> Result<Records, Fault> {
    let sql =
        format!("select {COLUMNS} from signing_key where not_after is null or not_after > now()");
    stream_records(transaction, &sql, |row| Ok(Item::SigningKey(record(row)))).await
}

const COLUMNS: &str = "id, kid, public_x, floor(extract(epoch from not_after))::bigint";

fn record(row: &Row) -> SigningKeyRecord {
    let key = PublicKey { kid: row.get(1), x: row.get(2) };
    SigningKeyRecord { id: row.get(0), key, not_after: row.get(3) }
}

/// Where a seed may be opened.
fn sealed_for(id: Uuid) -> String {
    format!("signing key {id}")
}

/// Nobody else's number, one hopes: the first letters of our name.
const LOCK: i64 = 0x7061_676f_6461_0002;
