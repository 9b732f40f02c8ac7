//! Models, for administrators. A model that is not local names the upstream that serves it.

use futures_util::future::BoxFuture;
use pagoda_http::reply::Reply;
use pagoda_wire::snapshot::{Price, Provider};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::envelope::success;
use super::listing::{Paging, given, time};
use crate::fault::Fault;
use crate::http::call::Call;
use crate::http::route::Failure;
use crate::operations::models::{self, Model, ModelChange, NewModel};
use crate::operations::text::field;
use crate::profiles::settle::settle;

type Answered = BoxFuture<'static, Result<Reply, Failure>>;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    id: Uuid,
    name: &'a str,
    provider: Provider,
    model: &'a str,
    enabled: bool,
    upstream_id: Option<Uuid>,
    /// Nano-dollars a million tokens.
    input_nano: Option<u64>,
    cached_nano: Option<u64>,
    output_nano: Option<u64>,
    created_at: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Create {
    name: String,
    provider: String,
    /// What it is called where it is served; absent, as here.
    model: Option<String>,
    enabled: Option<bool>,
    upstream_id: Option<Uuid>,
    input_nano: Option<u64>,
    cached_nano: Option<u64>,
    output_nano: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Update {
    name: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    upstream_id: Option<Option<Uuid>>,
    #[serde(default, deserialize_with = "given")]
    input_nano: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    cached_nano: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    output_nano: Option<Option<u64>>,
}

fn shown(model: &Model) -> Shown<'_> {
    Shown {
        id: model.id,
        name: &model.name,
        provider: model.provider,
        model: &model.model,
        enabled: model.is_enabled,
        upstream_id: model.upstream,
        input_nano: model.price.input,
        cached_nano: model.price.cached,
        output_nano: model.price.output,
        created_at: time(model.created_at),
    }
}

/// `GET /api/v1/admin/models`
pub(super) fn list(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let paging: Paging = context.query()?;
        let part = paging.part()?;
        let list = models::list(&context.operations.database, part).await?;
        Ok(success(&paging.listing(&part, list, |model| serde_json::json!(shown(model)))))
    })
}

/// `POST /api/v1/admin/models`
pub(super) fn create(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Create>().await?;
        let new = NewModel {
            name: field("name", body.name.as_str())?,
            provider: provider(&body.provider)?,
            upstream: body.upstream_id,
            model: field("model", body.model.unwrap_or(body.name))?,
            is_enabled: body.enabled.unwrap_or(true),
            price: Price {
                input: body.input_nano,
                cached: body.cached_nano,
                output: body.output_nano,
            },
        };
        let database = &context.operations.database;
        let written = models::create(database, &context.actor, new).await?;
        let reply = success(&shown(&written.value));
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

/// `PUT /api/v1/admin/models/{modelId}`
pub(super) fn update(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Update>().await?;
        let id = context.id("modelId", "model")?;
        let database = &context.operations.database;
        // A price is written whole, who serves a model too: what is not given is as it was.
        let known = models::find(database, id).await?;
        let served_by = match (&body.provider, body.upstream_id) {
            (None, None) => None,
            (named, upstream) => {
                let named = named.as_deref().map(provider).transpose()?.unwrap_or(known.provider);
                let as_it_was = || known.upstream.filter(|_| named != Provider::Local);
                Some((named, upstream.unwrap_or_else(as_it_was)))
            }
        };
        let price = Price {
            input: body.input_nano.unwrap_or(known.price.input),
            cached: body.cached_nano.unwrap_or(known.price.cached),
            output: body.output_nano.unwrap_or(known.price.output),
        };
        let change = ModelChange {
            name: body.name.map(|name| field("name", name)).transpose()?,
            served_by,
            model: body.model.map(|model| field("model", model)).transpose()?,
            is_enabled: body.enabled,
            price: (price != known.price).then_some(price),
        };
        let written = models::update(database, &context.actor, id, change).await?;
        let reply = success(&shown(&written.value));
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

fn provider(name: &str) -> Result<Provider, Fault> {
    let found = Provider::ALL.into_iter().find(|provider| provider.name() == name);
    found.ok_or_else(|| {
        let all = Provider::ALL.map(Provider::name).join(", ");
        Fault::invalid("provider", format!("provider must be one of {all}"))
    })
}
