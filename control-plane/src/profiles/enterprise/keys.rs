//! API keys, for administrators. A key's secret is in one answer, and nobody is shown it again.

use futures_util::future::BoxFuture;
use pagoda_http::reply::Reply;
use pagoda_wire::snapshot::{Budget, Scope, Window};
use pagoda_wire::token::Role;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::envelope::success;
use super::listing::{Paging, given, moment, time};
use super::users::named;
use crate::fault::Fault;
use crate::http::call::{Call, Context};
use crate::http::route::Failure;
use crate::operations::api_keys::issue::{self, IssuedKey};
use crate::operations::api_keys::{self, Hand, Key, KeyUpdate, Settings, rows};
use crate::operations::fields::{Label, Named, Search, parse_models, parse_networks};
use crate::operations::rbac::Reach;
use crate::profiles::settle::settle;

type Answered = BoxFuture<'static, Result<Reply, Failure>>;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    id: Uuid,
    user_id: Uuid,
    name: &'a str,
    prefix: String,
    enabled: bool,
    scopes: Vec<&'static str>,
    models: Option<&'a [String]>,
    networks: Vec<String>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    budget_nano: Option<u64>,
    budget_window: Option<&'static str>,
    expires_at: Option<String>,
    created_at: String,
    last_used_on: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    user_id: Option<Uuid>,
    search: Option<String>,
    enabled: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Create {
    user_id: Uuid,
    name: String,
    enabled: Option<bool>,
    scopes: Option<Vec<String>>,
    models: Option<Vec<String>>,
    networks: Option<Vec<String>>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    budget_nano: Option<u64>,
    budget_window: Option<String>,
    expires_at: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Update {
    name: Option<String>,
    enabled: Option<bool>,
    scopes: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    models: Option<Option<Vec<String>>>,
    networks: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    requests_per_minute: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    tokens_per_minute: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    budget_nano: Option<Option<u64>>,
    budget_window: Option<String>,
    #[serde(default, deserialize_with = "given")]
    expires_at: Option<Option<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotate {
    #[serde(default)]
    grace_seconds: u32,
}

/// `GET /api/v1/admin/keys`
pub(super) fn list(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let paging: Paging = context.query()?;
        let filter: Filter = context.query()?;
        let filter = rows::KeyFilter {
            owner: filter.user_id,
            search: filter.search.map(|text| Search::parse("search", &text)).transpose()?,
            enabled: filter.enabled,
        };
        let part = paging.part()?;
        let list = rows::list(&context.operations, Reach::Everyone, &filter, part).await?;
        Ok(success(&paging.listing(&part, list, |key| serde_json::json!(shown(key, None)))))
    })
}

/// `POST /api/v1/admin/keys`
pub(super) fn create(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Create>().await?;
        let owner = body.user_id;
        let settings = settings(body)?;
        let written = issue::create(&context.operations, hand(&context)?, owner, settings).await?;
        let reply = issued(&written.value);
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

/// `PUT /api/v1/admin/keys/{keyId}`
pub(super) fn update(call: Call) -> Answered {
    Box::pin(async move {
        let (context, body) = call.read::<Update>().await?;
        let id = context.id("keyId", "key")?;
        let update = changes(body)?;
        let written = api_keys::update(&context.operations, hand(&context)?, id, update).await?;
        let reply = success(&shown(&written.value, None));
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

/// `POST /api/v1/admin/keys/{keyId}/rotate`
pub(super) fn rotate(call: Call) -> Answered {
    Box::pin(async move {
        let (context, Rotate { grace_seconds }) = call.read::<Rotate>().await?;
        let id = context.id("keyId", "key")?;
        let hand = hand(&context)?;
        let written = issue::rotate(&context.operations, hand, id, grace_seconds).await?;
        let reply = issued(&written.value);
        Ok(settle(&context.operations, written.revision, reply).await)
    })
}

/// `DELETE /api/v1/admin/keys/{keyId}`
pub(super) fn delete(call: Call) -> Answered {
    Box::pin(async move {
        let context = call.context;
        let id = context.id("keyId", "key")?;
        let revision = api_keys::delete(&context.operations, hand(&context)?, id).await?;
        Ok(settle(&context.operations, revision, success(&Value::Null)).await)
    })
}

/// Routes of this file are for who may change everybody's keys.
fn hand(context: &Context) -> Result<Hand<'_>, Failure> {
    context.known()?;
    Ok(Hand { actor: &context.actor, reach: Reach::Everyone, role: Role::Admin })
}

fn settings(body: Create) -> Result<Settings, Fault> {
    let plain = Settings::named(Label::required("name", &body.name)?);
    Ok(Settings {
        enabled: body.enabled.unwrap_or(true),
        scopes: body.scopes.map_or(Ok(plain.scopes), |texts| scopes(&texts))?,
        models: body.models.map(|names| parse_models("models", names)).transpose()?,
        networks: parse_networks("networks", &body.networks.unwrap_or_default())?,
        requests_per_minute: body.requests_per_minute,
        tokens_per_minute: body.tokens_per_minute,
        budget: budget(body.budget_nano, body.budget_window.as_deref())?,
        expires_at: body.expires_at.map(|text| moment("expiresAt", &text)).transpose()?,
        name: plain.name,
    })
}

fn changes(body: Update) -> Result<KeyUpdate, Fault> {
    let models =
        |names: Option<Vec<String>>| names.map(|names| parse_models("models", names)).transpose();
    let window = body.budget_window.as_deref();
    let budget = match body.budget_nano {
        None if window.is_some() => {
            return Err(Fault::invalid("budgetWindow", "budgetWindow needs budgetNano beside it"));
        }
        None => None,
        Some(nano) => Some(budget(nano, window)?),
    };
    let end = |text: Option<String>| text.map(|text| moment("expiresAt", &text)).transpose();
    let networks = body.networks.as_deref();
    Ok(KeyUpdate {
        name: body.name.map(|text| Label::required("name", &text)).transpose()?,
        enabled: body.enabled,
        scopes: body.scopes.map(|texts| scopes(&texts)).transpose()?,
        models: body.models.map(models).transpose()?,
        networks: networks.map(|texts| parse_networks("networks", texts)).transpose()?,
        requests_per_minute: body.requests_per_minute,
        tokens_per_minute: body.tokens_per_minute,
        budget,
        expires_at: body.expires_at.map(end).transpose()?,
    })
}

/// An amount without a window is for the key's whole life.
fn budget(nano: Option<u64>, window: Option<&str>) -> Result<Option<Budget>, Fault> {
    let window = named("budgetWindow", window)?;
    match (nano, window) {
        (Some(nano), window) => Ok(Some(Budget { nano, window: window.unwrap_or(Window::Total) })),
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(Fault::invalid("budgetWindow", "budgetWindow needs budgetNano beside it"))
        }
    }
}

fn scopes(texts: &[String]) -> Result<Vec<Scope>, Fault> {
    let mut scopes = Vec::new();
    for text in texts {
        let scope = named("scopes", Some(text))?.into_iter();
        scopes.extend(scope.filter(|scope| !scopes.contains(scope)).collect::<Vec<_>>());
    }
    Ok(scopes)
}

fn issued(issued: &IssuedKey) -> Reply {
    success(&shown(&issued.key, Some(&issued.secret)))
}

fn shown<'a>(key: &'a Key, secret: Option<&'a str>) -> Shown<'a> {
    let settings = &key.settings;
    Shown {
        id: key.id,
        user_id: key.owner,
        name: settings.name.as_str(),
        prefix: format!("sk-{}", key.public_id.as_str()),
        enabled: settings.enabled,
        scopes: settings.scopes.iter().map(|scope| scope.text()).collect(),
        models: settings.models.as_deref(),
        networks: settings.networks.iter().map(ToString::to_string).collect(),
        requests_per_minute: settings.requests_per_minute,
        tokens_per_minute: settings.tokens_per_minute,
        budget_nano: settings.budget.map(|budget| budget.nano),
        budget_window: settings.budget.map(|budget| budget.window.text()),
        expires_at: settings.expires_at.map(time),
        created_at: time(key.created_at),
        last_used_on: key.last_used_on.map(|day| day.to_string()),
        key: secret,
    }
}
