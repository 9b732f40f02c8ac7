//! StellarByte's contract: sessions, their messages and histories, each as plain JSON.
//!
//! Times are seconds of UTC without a zone, lists are bare, and what went wrong is a `detail`.
//! Completions and sockets are the data plane's.

/// Sessions.
mod sessions;

/// Messages and histories.
mod messages;

#[cfg(test)]
mod tests;

use hyper::Method;
use jiff::Timestamp;
use pagoda_http::reply::{Reply, json};
use serde::Deserialize;
use serde_json::json;

use crate::http::call::Context;
use crate::http::route::{Access, Face, Failure, Route};
use crate::operations::owner::Owner;
use crate::operations::rbac::Permission;
use crate::profiles::listener::told;

/// The profile.
pub static FACE: Face = Face { name: "stellarbyte", routes: ROUTES, fault: failed };

/// Every route of the document that the control plane serves.
const ROUTES: &[Route] = &[
    own(Method::POST, "/api/sessions", sessions::create),
    own(Method::GET, "/api/sessions", sessions::list),
    own(Method::GET, "/api/sessions/{session_id}", sessions::find),
    own(Method::PUT, "/api/sessions/{session_id}", sessions::update),
    own(Method::DELETE, "/api/sessions/{session_id}", sessions::delete),
    own(Method::POST, "/api/sessions/{session_id}/messages", messages::append),
    own(Method::GET, "/api/sessions/{session_id}/messages", messages::list),
    own(Method::GET, "/api/sessions/{session_id}/history", messages::history),
];

type Answered = futures_util::future::BoxFuture<'static, Result<Reply, Failure>>;

/// A route for who may have sessions.
const fn own(
    method: Method,
    path: &'static str,
    serve: fn(crate::http::call::Call) -> Answered,
) -> Route {
    Route { method, path, access: Access::May(Permission::OwnSessions), serve }
}

/// Which part of a list, as the query says.
#[derive(Clone, Copy, Deserialize)]
struct Part {
    #[serde(default)]
    skip: u64,
    #[serde(default = "hundred")]
    limit: u64,
}

fn hundred() -> u64 {
    100
}

/// Whose sessions the caller sees: the own ones, or those that anonymous callers share.
fn owner(context: &Context) -> Owner {
    Owner { user: context.principal.as_ref().map(|principal| principal.user), profile: FACE.name }
}

/// `2023-01-01T00:00:00`
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

fn failed(failure: &Failure) -> Reply {
    let (status, message) = told(failure);
    json(status, &json!({ "detail": message }))
}
