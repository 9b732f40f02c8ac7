//! Routes of the listener itself: is it alive, is it ready, what does it count, and a page.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use hyper::{Method, StatusCode};
use pagoda_http::reply::{Reply, json as json_reply, with_type};
use serde_json::json;

use crate::api::error::ApiError;
use crate::api::{Api, Condition};
use crate::http::route::{AccessRule, Call, Face, Route};
use crate::page;
use crate::plane::Standing;
use crate::profiles::openai;

/// Its errors have OpenAI's shape.
pub static FACE: Face = Face {
    name: "pagoda",
    base_path: "/",
    routes: &[
        get("/", AccessRule::Public, |_| reply(chat_page())),
        get("/health", AccessRule::Public, |call| reply(health(&call.context.api))),
        get("/ready", AccessRule::Public, |call| reply(ready(&call.context.api))),
        get("/version", AccessRule::Public, |_| reply(version())),
        get("/metrics", AccessRule::Metrics, |call| reply(metrics(&call.context.api))),
    ],
    error: openai::errors::render,
};

type Answer = BoxFuture<'static, Result<Reply, ApiError>>;

const fn get(path: &'static str, access: AccessRule, serve: fn(Call) -> Answer) -> Route {
    Route { method: Method::GET, path, access, serve }
}

fn reply(reply: Reply) -> Answer {
    std::future::ready(Ok(reply)).boxed()
}

/// Alive: false only when waiting does not help.
fn health(api: &Api) -> Reply {
    let (status, word) = match api.condition() {
        Condition::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
        _ => (StatusCode::OK, "ok"),
    };
    json_reply(status, &json!({ "status": word, "uptime": api.uptime().as_secs() }))
}

/// Takes requests: what a load balancer asks.
fn ready(api: &Api) -> Reply {
    let (status, word) = match api.condition() {
        Condition::Ready => (StatusCode::OK, "ready"),
        Condition::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Condition::Empty => (StatusCode::SERVICE_UNAVAILABLE, "empty"),
        Condition::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Condition::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
    };
    let mut told = json!({ "status": word });
    if let Some(Standing { revision, age_s }) = api.plane() {
        told["control_plane"] = json!({ "revision": revision, "age_s": age_s });
    }
    json_reply(status, &told)
}

fn version() -> Reply {
    json_reply(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") }))
}

fn metrics(api: &Api) -> Reply {
    with_type(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        crate::api::observe::render(api),
    )
}

fn chat_page() -> Reply {
    let mut reply = with_type(StatusCode::OK, "text/html; charset=utf-8", page::HTML);
    let headers = reply.headers_mut();
    headers
        .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::CONTENT_SECURITY_POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply
}
