//! Health, readiness, version, metrics and the key set: what belongs to the listener and to no contract.
//!
//! `/health`: the process lives. `/ready`: it can serve, which needs the database.

use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use pagoda_http::reply::{Reply, json, with_type};
use pagoda_wire::token::PublicKey;
use serde_json::json;

use crate::fault::Fault;
use crate::http::call::Call;
use crate::http::route::{Access, Face, Failure, Route};
use crate::operations::signing_keys;

/// The listener's own routes.
pub static FACE: Face = Face {
    name: "pagoda",
    routes: &[
        Route { method: Method::GET, path: "/health", access: Access::Public, serve: health },
        Route { method: Method::GET, path: "/ready", access: Access::Public, serve: ready },
        Route { method: Method::GET, path: "/version", access: Access::Public, serve: version },
        Route { method: Method::GET, path: "/metrics", access: Access::Public, serve: metrics },
        Route {
            method: Method::GET,
            path: "/.well-known/jwks.json",
            access: Access::Public,
            serve: key_set,
        },
    ],
    fault: failed,
};

type Answered = BoxFuture<'static, Result<Reply, Failure>>;

fn health(_: Call) -> Answered {
    Box::pin(async { Ok(json(StatusCode::OK, &json!({ "status": "ok" }))) })
}

fn ready(call: Call) -> Answered {
    Box::pin(async move {
        let client = call.context.operations.database.client().await?;
        client.query_one("select 1", &[]).await.map_err(Fault::from)?;
        Ok(json(StatusCode::OK, &json!({ "status": "ready" })))
    })
}

fn version(_: Call) -> Answered {
    let version = env!("CARGO_PKG_VERSION");
    Box::pin(async move { Ok(json(StatusCode::OK, &json!({ "version": version }))) })
}

fn metrics(call: Call) -> Answered {
    Box::pin(async move {
        let operations = &call.context.operations;
        let text = operations.metrics.render(operations.database.connections());
        Ok(with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
    })
}

/// Public keys of access tokens (RFC 7517, RFC 8037).
fn key_set(call: Call) -> Answered {
    Box::pin(async move {
        let keys = signing_keys::published(&call.context.operations).await?;
        let key = |PublicKey { kid, x }| json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x });
        let keys: Vec<_> = keys.into_iter().map(key).collect();
        Ok(json(StatusCode::OK, &json!({ "keys": keys })))
    })
}

/// The plain shape of what went wrong: for who called no profile at all.
pub fn failed(failure: &Failure) -> Reply {
    let (status, message) = told(failure);
    json(status, &json!({ "error": { "message": message } }))
}

/// The status and the words of a failure, for faces whose document leaves them to us.
pub fn told(failure: &Failure) -> (StatusCode, String) {
    match failure {
        Failure::UnknownRoute => (StatusCode::NOT_FOUND, "there is no such route".into()),
        Failure::WrongMethod { allow } => {
            (StatusCode::METHOD_NOT_ALLOWED, format!("this route takes {allow}"))
        }
        Failure::Body { status, message } => (*status, message.clone()),
        Failure::Fault(fault) => (status(fault), fault.to_string()),
    }
}

fn status(fault: &Fault) -> StatusCode {
    match fault {
        Fault::Invalid { .. } => StatusCode::BAD_REQUEST,
        Fault::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
        Fault::Forbidden => StatusCode::FORBIDDEN,
        Fault::NotFound(_) => StatusCode::NOT_FOUND,
        Fault::Conflict(_) => StatusCode::CONFLICT,
        Fault::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Fault::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        Fault::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Fault::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
