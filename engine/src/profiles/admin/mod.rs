//! `/admin/models`: what is in memory, and loading, replacing and unloading it while others serve.
//!
//! Mounted only where keys for it exist; no other key opens it. Errors have OpenAI's shape. Decides
//! nothing: an [`Operator`](crate::api::operator::Operator) does.

/// What a body says.
pub mod wire;

/// What is told of models.
mod told;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use hyper::{Method, StatusCode};
use pagoda_http::reply::{Reply, json as json_reply};
use serde_json::json;

use crate::api::error::ApiError;
use crate::api::operator::{Operator, Wanted};
use crate::api::shown;
use crate::http::route::{AccessRule, Call, Face, Route};
use crate::profiles::openai;
use wire::{Addressed, Asked, Going};

/// Every route of this face.
pub static FACE: Face = Face {
    name: "admin",
    base_path: "/admin",
    routes: &[
        route(Method::GET, "/admin/models", |call| ready(list(&call)).boxed()),
        route(Method::POST, "/admin/models", |call| load(call).boxed()),
        route(Method::GET, "/admin/models/{id}", |call| ready(one(call)).boxed()),
        route(Method::PUT, "/admin/models/{id}", |call| replace(call).boxed()),
        route(Method::DELETE, "/admin/models/{id}", |call| unload(call).boxed()),
    ],
    error: openai::errors::render,
};

type Answer = BoxFuture<'static, Result<Reply, ApiError>>;

const fn route(method: Method, path: &'static str, serve: fn(Call) -> Answer) -> Route {
    Route { method, path, access: AccessRule::Admin, serve }
}

fn operator(call: &Call) -> Result<Arc<dyn Operator>, ApiError> {
    call.context.api.operator().ok_or(ApiError::Internal)
}

fn list(call: &Call) -> Result<Reply, ApiError> {
    Ok(json_reply(StatusCode::OK, &told::all(&operator(call)?.inventory())))
}

fn one(call: Call) -> Result<Reply, ApiError> {
    let inventory = operator(&call)?.inventory();
    let name = call.rest.unwrap_or_default();
    match told::named(&inventory, &name) {
        Some(model) => Ok(json_reply(StatusCode::OK, &model)),
        None => Err(ApiError::ModelNotFound(shown(&name))),
    }
}

async fn load(call: Call) -> Result<Reply, ApiError> {
    let operator = operator(&call)?;
    let (_, body) = call.read_object().await?;
    let Asked { name, path, options, .. } = Asked::read(&body, None)?;
    drop(body);
    let wanted = Wanted { name, path, options, ..Wanted::default() };
    let model = operator.load(wanted).await?;
    Ok(json_reply(StatusCode::CREATED, &told::model(&model)))
}

async fn replace(call: Call) -> Result<Reply, ApiError> {
    let operator = operator(&call)?;
    let name = call.rest.clone().unwrap_or_default();
    let is_served = call.context.api.instances().iter().any(|one| one.has_name(&name));
    let (_, body) = call.read_object().await?;
    let name = Some(Addressed { name, is_served });
    let Asked { name, path, options, drain_timeout } = Asked::read(&body, name)?;
    drop(body);
    let wanted = Wanted { name, path, options, replace: true, drain_timeout };
    let model = operator.load(wanted).await?;
    Ok(json_reply(StatusCode::OK, &told::model(&model)))
}

async fn unload(call: Call) -> Result<Reply, ApiError> {
    let operator = operator(&call)?;
    let name = call.rest.clone().unwrap_or_default();
    let Going { drain_timeout } = match hyper::body::Body::is_end_stream(&call.body) {
        true => Going::default(),
        false => Going::read(&call.read_object().await?.1)?,
    };
    let gone = operator.unload(name.clone(), drain_timeout).await?;
    let told = json!({
        "name": shown(&name),
        "state": "unloaded",
        "cut_off": gone.cut_off,
        "freed_bytes": gone.freed,
    });
    Ok(json_reply(StatusCode::OK, &told))
}
