//! Models: what callers name, who serves it, and what its tokens cost.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use pagoda_wire::snapshot::{self, Item, Kind, ModelRecord, Price, Provider};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::database::change::{Actor, Change, Event};
use crate::database::{Database, TENANT};
use crate::fault::{Fault, violates};
use crate::operations::Written;
use crate::operations::page::List;
use crate::operations::text::{Line, TextError};
use crate::operations::upstreams::provider;
use crate::operations::window::Window;

/// What callers call a model: a line of up to 200 characters without `/`, as names stand in paths.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ModelName(Line<1, 200>);

/// What a model is called where it is served.
pub type ServedName = Line<1, 200>;

/// A model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The model.
    pub id: Uuid,
    /// What callers call it.
    pub name: String,
    /// Who serves it.
    pub provider: Provider,
    /// Where, unless it is local.
    pub upstream: Option<Uuid>,
    /// What it is called there.
    pub model: String,
    /// Nobody may use it while false.
    pub is_enabled: bool,
    /// What its tokens cost.
    pub price: Price,
    /// When it was made,
    pub created_at: Timestamp,
    /// and when something of it changed.
    pub updated_at: Timestamp,
}

/// A model to make.
#[derive(Clone, Debug)]
pub struct NewModel {
    /// What callers call it.
    pub name: ModelName,
    /// Who serves it.
    pub provider: Provider,
    /// Where; must be there and of the same provider, unless that is local.
    pub upstream: Option<Uuid>,
    /// What it is called there.
    pub model: ServedName,
    /// Nobody may use it while false.
    pub is_enabled: bool,
    /// What its tokens cost.
    pub price: Price,
}

/// What may be changed of a model; `None` stays.
#[derive(Clone, Debug, Default)]
pub struct ModelChange {
    /// What callers call it.
    pub name: Option<ModelName>,
    /// Who serves it and where; both at once, since they must fit.
    pub served_by: Option<(Provider, Option<Uuid>)>,
    /// What it is called there.
    pub model: Option<ServedName>,
    /// Nobody may use it while false.
    pub is_enabled: Option<bool>,
    /// What its tokens cost.
    pub price: Option<Price>,
}

impl ModelName {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for ModelName {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        match text.contains('/') {
            true => Err(TextError::Slash),
            false => Line::try_from(text).map(ModelName),
        }
    }
}

/// Makes a model.
pub async fn create(
    database: &Database,
    actor: &Actor,
    new: NewModel,
) -> Result<Written<Model>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    fits(change.transaction(), new.provider, new.upstream).await?;
    let id = Uuid::now_v7();
    let [input, cached, output] = prices(&new.price)?;
    let row = change
        .transaction()
        .query_one(
            &format!(
                "insert into model (id, tenant_id, name, provider, upstream_id, model, enabled,
                     input_nano, cached_nano, output_nano)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) returning {COLUMNS}"
            ),
            &[
                &id,
                &TENANT,
                &new.name.as_str(),
                &new.provider.name(),
                &new.upstream,
                &new.model.as_str(),
                &new.is_enabled,
                &input,
                &cached,
                &output,
            ],
        )
        .await
        .map_err(taken)?;
    let made = model(&row)?;
    let event = Event::new("model.create", "model", id);
    change.audit(event.with(None, Some(told(&made))));
    change.publish(put(&made));
    Ok(Written { revision: change.commit().await?, value: made })
}

/// Changes a model.
pub async fn update(
    database: &Database,
    actor: &Actor,
    id: Uuid,
    wanted: ModelChange,
) -> Result<Written<Model>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let sql = format!("select {COLUMNS} from model where tenant_id = $1 and id = $2 for update");
    let found = change.transaction().query_opt(&sql, &[&TENANT, &id]).await?;
    let before = model(&found.ok_or(Fault::NotFound("model"))?)?;
    let (provider, upstream) = wanted.served_by.unwrap_or((before.provider, before.upstream));
    fits(change.transaction(), provider, upstream).await?;
    let [input, cached, output] = prices(&wanted.price.unwrap_or(before.price))?;
    let row = change
        .transaction()
        .query_one(
            &format!(
                "update model set name = coalesce($3, name), provider = $4, upstream_id = $5,
                     model = coalesce($6, model), enabled = coalesce($7, enabled),
                     input_nano = $8, cached_nano = $9, output_nano = $10, updated_at = now()
                 where tenant_id = $1 and id = $2 returning {COLUMNS}"
            ),
            &[
                &TENANT,
                &id,
                &wanted.name.as_ref().map(ModelName::as_str),
                &provider.name(),
                &upstream,
                &wanted.model.as_ref().map(Line::as_str),
                &wanted.is_enabled,
                &input,
                &cached,
                &output,
            ],
        )
        .await
        .map_err(taken)?;
    let after = model(&row)?;
    let event = Event::new("model.update", "model", id);
    change.audit(event.with(Some(told(&before)), Some(told(&after))));
    change.publish(put(&after));
    Ok(Written { revision: change.commit().await?, value: after })
}

/// Removes a model.
pub async fn delete(database: &Database, actor: &Actor, id: Uuid) -> Result<Written<()>, Fault> {
    let mut client = database.client().await?;
    let mut change = Change::begin(&mut client, actor).await?;
    let sql = format!("delete from model where tenant_id = $1 and id = $2 returning {COLUMNS}");
    let gone = change.transaction().query_opt(&sql, &[&TENANT, &id]).await?;
    let before = model(&gone.ok_or(Fault::NotFound("model"))?)?;
    change.audit(Event::new("model.delete", "model", id).with(Some(told(&before)), None));
    change.publish(snapshot::Change::Remove(Kind::Model, id));
    Ok(Written { revision: change.commit().await?, value: () })
}

/// Models, the newest first.
pub async fn list(database: &Database, page: Window<Uuid>) -> Result<List<Model>, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from model where tenant_id = $1 and id < $2
             order by id desc limit $3 offset $4"
        ))
        .await?;
    let rows =
        client.query(&statement, &[&TENANT, &page.below(), &page.fetch(), &page.skip()]).await?;
    let sql = "select count(*) from model where tenant_id = $1";
    let total = client.query_one(sql, &[&TENANT]).await?.get(0);
    let models = rows.iter().map(model).collect::<Result<_, _>>()?;
    Ok(page.list(models, total, |model: &Model| model.id))
}

/// One model.
pub async fn find(database: &Database, id: Uuid) -> Result<Model, Fault> {
    let client = database.client().await?;
    let sql = format!("select {COLUMNS} from model where tenant_id = $1 and id = $2");
    let row = client.query_opt(&sql, &[&TENANT, &id]).await?;
    model(&row.ok_or(Fault::NotFound("model"))?)
}

/// What a full snapshot holds of models.
pub async fn records(client: &impl GenericClient) -> Result<Vec<Item>, Fault> {
    let rows = client.query(&format!("select {COLUMNS} from model"), &[]).await?;
    rows.iter().map(|row| model(row).map(|model| Item::Model(record(&model)))).collect()
}

/// An upstream speaks its own provider's format, and a local model has none.
async fn fits(
    transaction: &Transaction<'_>,
    wanted: Provider,
    upstream: Option<Uuid>,
) -> Result<(), Fault> {
    let Some(upstream) = upstream else {
        return match wanted {
            Provider::Local => Ok(()),
            _ => Err(Fault::invalid("upstream", "a model that is not local needs an upstream")),
        };
    };
    // Stays as it is until the model is written.
    let sql = "select provider from upstream where tenant_id = $1 and id = $2 for share";
    let found = transaction.query_opt(sql, &[&TENANT, &upstream]).await?;
    let found = found.ok_or_else(|| Fault::invalid("upstream", "there is no such upstream"))?;
    match provider(found.get(0))? == wanted {
        true => Ok(()),
        false => Err(Fault::invalid("provider", "the upstream is another provider's")),
    }
}

fn prices(price: &Price) -> Result<[Option<i64>; 3], Fault> {
    let checked = |value: Option<u64>| {
        let value = value.map(i64::try_from).transpose();
        value.map_err(|_| Fault::invalid("price", "the price is too high to be counted"))
    };
    Ok([checked(price.input)?, checked(price.cached)?, checked(price.output)?])
}

fn taken(error: tokio_postgres::Error) -> Fault {
    match violates(&error, "model_name") {
        true => Fault::Conflict("another model has this name".into()),
        false => error.into(),
    }
}

fn put(model: &Model) -> snapshot::Change {
    snapshot::Change::Put(Box::new(Item::Model(record(model))))
}

fn record(model: &Model) -> ModelRecord {
    ModelRecord {
        id: model.id,
        name: model.name.clone(),
        provider: model.provider,
        upstream: model.upstream,
        model: model.model.clone(),
        enabled: model.is_enabled,
        price: model.price,
    }
}

/// What the audit tells of a model.
fn told(model: &Model) -> Value {
    json!({
        "name": model.name,
        "provider": model.provider,
        "upstream": model.upstream,
        "model": model.model,
        "enabled": model.is_enabled,
        "price": model.price,
    })
}

const COLUMNS: &str = "id, name, provider, upstream_id, model, enabled, \
     input_nano, cached_nano, output_nano, created_at, updated_at";

fn model(row: &Row) -> Result<Model, Fault> {
    let price = |column: usize| {
        let nano: Option<i64> = row.get(column);
        nano.map(u64::try_from).transpose().map_err(Fault::internal)
    };
    Ok(Model {
        id: row.get(0),
        name: row.get(1),
        provider: provider(row.get(2))?,
        upstream: row.get(3),
        model: row.get(4),
        is_enabled: row.get(5),
        price: Price { input: price(6)?, cached: price(7)?, output: price(8)? },
        created_at: row.get(9),
        updated_at: row.get(10),
    })
}
