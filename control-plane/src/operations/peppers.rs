//! Peppers: what the MACs of API keys are made with, sealed in the database and between planes.
//!
//! Keys that are made take the current one; older ones stay as long as a key needs them, since a MAC
//! cannot be made anew without the secret that nobody has.

use pagoda_wire::secret::Secret;
use pagoda_wire::snapshot::{Change as Published, Item, Kind, PepperRecord, Revision};
use pagoda_wire::vault::Vault;
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::Operations;
use crate::database::change::{Actor, Change, Event};
use crate::fault::Fault;

/// The pepper of keys that are made now. Makes the first one.
pub(super) async fn current(
    operations: &Operations,
    change: &mut Change<'_>,
) -> Result<(Uuid, Secret), Fault> {
    if let Some(found) = look(operations, change).await? {
        return Ok(found);
    }
    lock(change).await?;
    match look(operations, change).await? {
        Some(found) => Ok(found),
        None => insert(operations, change).await,
    }
}

/// Keys that are made from now on take a new pepper. Those that there are keep theirs until they
/// are rotated; a pepper that no key has is forgotten.
pub async fn rotate(operations: &Operations, actor: &Actor) -> Result<Option<Revision>, Fault> {
    let mut client = operations.database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    lock(&change).await?;
    let sql = "update pepper set is_current = false where is_current";
    change.transaction().execute(sql, &[]).await?;
    insert(operations, &mut change).await?;
    let sql = "delete from pepper p where not is_current
                   and not exists (select from api_key k where k.pepper_id = p.id) returning id";
    for row in change.transaction().query(sql, &[]).await? {
        let id: Uuid = row.get(0);
        change.audit(Event::new("pepper.delete", "pepper", id));
        change.publish(Published::Remove(Kind::Pepper, id));
    }
    change.commit().await
}

async fn look(
    operations: &Operations,
    change: &Change<'_>,
) -> Result<Option<(Uuid, Secret)>, Fault> {
    // Shared: a rotation that forgets a pepper waits for the key that takes it.
    let sql = "select id, sealed from pepper where is_current for share";
    let row = change.transaction().query_opt(sql, &[]).await?;
    let opened = |row: tokio_postgres::Row| {
        let id: Uuid = row.get(0);
        Ok((id, operations.pepper(id, row.get(1))?))
    };
    row.map(opened).transpose()
}

async fn lock(change: &Change<'_>) -> Result<(), Fault> {
    change.transaction().execute("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    Ok(())
}

async fn insert(operations: &Operations, change: &mut Change<'_>) -> Result<(Uuid, Secret), Fault> {
    let (id, pepper) = (Uuid::now_v7(), Secret::random().map_err(Fault::internal)?);
    let place = format!("pepper {id}");
    let sealed = operations.secrets.seal(pepper.bytes(), &place).map_err(Fault::internal)?;
    let sql = "insert into pepper (id, sealed, is_current) values ($1, $2, true)";
    change.transaction().execute(sql, &[&id, &sealed]).await?;
    change.audit(Event::new("pepper.create", "pepper", id));
    let record = record(operations, id, &pepper)?;
    change.publish(Published::Put(Box::new(Item::Pepper(record))));
    Ok((id, pepper))
}

fn record(operations: &Operations, id: Uuid, pepper: &Secret) -> Result<PepperRecord, Fault> {
    let vault = Vault::new(operations.secrets.planes()).map_err(Fault::internal)?;
    PepperRecord::seal(id, pepper, &vault).map_err(Fault::internal)
}

/// All peppers, for a full snapshot. They are few.
pub async fn records(
    operations: &Operations,
    transaction: &Transaction<'_>,
) -> Result<Vec<Item>, Fault> {
    let rows = transaction.query("select id, sealed from pepper", &[]).await?;
    let item = |row: &tokio_postgres::Row| {
        let id: Uuid = row.get(0);
        Ok(Item::Pepper(record(operations, id, &operations.pepper(id, row.get(1))?)?))
    };
    rows.iter().map(item).collect()
}

/// Nobody else's number, one hopes: the first letters of our name.
const LOCK: i64 = 0x7061_676f_6461_0003;
