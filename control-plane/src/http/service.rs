//! One request: id, route, credential, handler, and what every answer carries.
//!
//! A handler's panic ends its own request with a 500. Every answer has its profile's shape.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use pagoda_http::body::linger;
use pagoda_http::limits::Limits;
use pagoda_http::path::{Found, Params};
use pagoda_http::peer::Peer;
use pagoda_http::reply::{Reply, ReplyBody, without_body};
use pagoda_http::request_id::{REQUEST_ID, header_value, request_id};
use pagoda_http::server::Answer;
use pagoda_wire::secret::Secret;

use crate::database::change::{Actor, ActorKind};
use crate::fault::{Fault, Unknown};
use crate::http::call::{Call, Context};
use crate::http::credential::{Credential, credential};
use crate::http::route::{Access, Face, Failure, Own, Route, route};
use crate::operations::{Operations, Principal, rbac};
use crate::secrets::Secrets;

/// What all connections of a listener share.
pub struct Service {
    /// Routes that belong to no profile.
    pub own: Own,
    /// The profiles.
    pub faces: &'static [&'static Face],
    /// Bounds of what a request may hold.
    pub limits: Limits,
    /// What can be done.
    pub operations: Arc<Operations>,
    /// False until the schema is what operations need.
    pub started: Arc<AtomicBool>,
}

impl Answer for Service {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Reply {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let id = request_id(&head.headers);
        let routed = route(self.own, self.faces, &head.method, head.uri.path());
        let face = routed.face;
        let is_head = head.method == Method::HEAD;
        let (pattern, mut reply) = match routed.found {
            Found::Route { route, params } => {
                let reply = self.serve(face, route, params, head, body, peer, &id).await;
                (route.path, reply)
            }
            Found::WrongMethod { first, allow } => {
                linger(&self.limits, &head.headers, body);
                (first.path, wrong_method(face, &head.method, allow))
            }
            Found::Unknown => {
                linger(&self.limits, &head.headers, body);
                ("unknown", failed(face, &Failure::UnknownRoute))
            }
        };
        carry(&mut reply, &id, face);
        self.operations.metrics.answered(pattern, reply.status().as_u16(), started.elapsed());
        if is_head { without_body(reply) } else { reply }
    }
}

impl Service {
    #[allow(clippy::too_many_arguments, reason = "the parts of one request, each moved on")]
    async fn serve(
        &self,
        face: &'static Face,
        route: &'static Route,
        params: Params,
        head: hyper::http::request::Parts,
        body: Incoming,
        peer: Peer,
        id: &Arc<str>,
    ) -> Reply {
        let admitted = match self.started.load(Relaxed) || route.path == "/health" {
            true => self.admit(route.access, &head.headers, peer).await,
            false => Err(STARTING),
        };
        let principal = match admitted {
            Ok(principal) => principal,
            Err(fault) => {
                linger(&self.limits, &head.headers, body);
                return failed(face, &fault.into());
            }
        };
        let context = Context {
            params,
            query: head.uri.query().map(Into::into),
            headers: head.headers,
            actor: actor(principal.as_ref(), peer, id),
            principal,
            operations: self.operations.clone(),
        };
        let call = Call { body, limits: self.limits.clone(), context };
        match AssertUnwindSafe((route.serve)(call)).catch_unwind().await {
            Ok(Ok(reply)) => reply,
            Ok(Err(failure)) => failed(face, &failure),
            Err(_panic) => {
                tracing::error!(route = route.path, "a request handler panicked");
                failed(face, &Fault::Internal.into())
            }
        }
    }

    /// Lets the caller into a route. A credential that is there and wrong opens nothing at all.
    async fn admit(
        &self,
        access: Access,
        headers: &HeaderMap,
        peer: Peer,
    ) -> Result<Option<Principal>, Fault> {
        let permission = match access {
            Access::Public => return Ok(None),
            Access::Plane => {
                return admit_plane(&self.operations.secrets, headers).map(|()| None);
            }
            Access::May(permission) => permission,
        };
        let shown = credential(headers)?;
        let Some(shown) = shown else { return Err(Fault::Unauthenticated(Unknown::Missing)) };
        let principal = self.operations.authenticate(&shown, peer.address).await?;
        rbac::require(Some(&principal), permission)?;
        Ok(Some(principal))
    }
}

/// The schema is still being brought up to date.
const STARTING: Fault = Fault::Unavailable { what: "the control plane", retry_after_s: 1 };

/// Data planes show the secret that all planes share.
fn admit_plane(secrets: &Secrets, headers: &HeaderMap) -> Result<(), Fault> {
    let missing = Fault::Unauthenticated(Unknown::Missing);
    let Some(Credential::Token(token)) = credential(headers)? else { return Err(missing) };
    let shown = Secret::from_text(&token.0).ok_or(Fault::Unauthenticated(Unknown::Wrong))?;
    let (own, shown) = (secrets.planes().bytes(), shown.bytes());
    verify_slices_are_equal(own, shown).map_err(|_| Fault::Unauthenticated(Unknown::Wrong))
}

fn actor(principal: Option<&Principal>, peer: Peer, id: &Arc<str>) -> Actor {
    let (kind, known, login) = match principal {
        None => (ActorKind::Anonymous, None, None),
        Some(principal) => principal.for_audit(),
    };
    Actor { kind, id: known, login, address: Some(peer.address), request_id: id.to_string() }
}

fn wrong_method(face: &Face, method: &Method, allow: String) -> Reply {
    if method == Method::OPTIONS {
        let mut reply = Response::new(ReplyBody::full(""));
        *reply.status_mut() = StatusCode::NO_CONTENT;
        if let Ok(value) = HeaderValue::from_str(&allow) {
            reply.headers_mut().insert(ALLOW, value);
        }
        return reply;
    }
    failed(face, &Failure::WrongMethod { allow })
}

/// The face's shape of what went wrong, with the headers that its status asks for.
fn failed(face: &Face, failure: &Failure) -> Reply {
    let mut reply = (face.fault)(failure);
    let headers = reply.headers_mut();
    match failure {
        Failure::WrongMethod { allow } => {
            if let Ok(value) = HeaderValue::from_str(allow) {
                headers.insert(ALLOW, value);
            }
        }
        Failure::Fault(Fault::Unauthenticated(_)) => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Failure::Fault(fault) => {
            if let Some(seconds) = fault.retry_after_s() {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
        }
        Failure::UnknownRoute | Failure::Body { .. } => {}
    }
    reply
}

/// Headers of every answer. None may be kept by anybody between us and the caller.
fn carry(reply: &mut Reply, id: &str, face: &Face) {
    let headers = reply.headers_mut();
    if let Some(id) = header_value(id) {
        headers.insert(REQUEST_ID, id);
    }
    let fixed = [
        ("x-api-profile", face.name),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
    ];
    for (name, value) in fixed {
        let name = HeaderName::from_static(name);
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
