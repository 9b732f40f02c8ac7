//! One request: id, route, key, handler, and what every answer carries.
//!
//! A handler's panic ends its own request with a 500. Dropping the future, which hyper does when
//! the client leaves, drops the handler and with it its request in the engine.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use pagoda_http::body::linger;
use pagoda_http::cors::Cors;
use pagoda_http::hosts::Hosts;
use pagoda_http::peer::Peer;
use pagoda_http::reply::{Reply, ReplyBody, without_body};
use pagoda_http::request_id::{REQUEST_ID, header_value, request_id};
use pagoda_http::server::Answer;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::config::Limits;
use crate::http::access::Access;
use crate::http::body::BodyBudget;
use crate::http::callers::Callers;
use crate::http::keys::{Caller, Keys};
use crate::http::route::{AccessRule, Call, CallContext, Face, Routed, Router};
use crate::metrics::HttpMetrics;
use crate::trace::Tracer;
use crate::trace::context::TRACERESPONSE;

/// What all connections of a listener share.
pub struct Service {
    /// Its faces.
    pub router: Router,
    /// Who may call.
    pub callers: Callers,
    /// Who may change models; nobody if there are none.
    pub admin_keys: Arc<Keys>,
    /// Which names of ours a caller may use.
    pub hosts: Hosts,
    /// Whose pages may call.
    pub cors: Cors,
    /// Whether `/metrics` needs no key.
    pub metrics_public: bool,
    /// Bounds of what a request may hold.
    pub limits: Arc<Limits>,
    /// Reads bodies.
    pub bodies: Arc<BodyBudget>,
    /// The operations.
    pub api: Arc<Api>,
    /// What is counted.
    pub metrics: Arc<HttpMetrics>,
    /// Begins traces.
    pub tracer: Tracer,
}

impl Answer for Service {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Reply {
        let (head, body) = request.into_parts();
        let id = request_id(&head.headers);
        let trace = self.tracer.begin(&head.headers);
        let metrics = self.metrics.clone();
        let mut access = Access::begin(id.clone(), peer.address, &head.method, metrics, trace);
        let routed = self.router.find(&head.method, head.uri.path());
        let face = match &routed {
            Routed::Found { face, .. }
            | Routed::WrongMethod { face, .. }
            | Routed::Unknown { face } => *face,
        };
        let mut reply = match routed {
            Routed::Found { route, rest, .. } => {
                access.set_route(route.path);
                if !matches!(route.access, AccessRule::Key | AccessRule::Admin) {
                    access.set_probe();
                }
                match self.admit(route.access, &head, peer) {
                    Ok(caller) => {
                        let context = self.context(id.clone(), caller, &access);
                        let headers = head.headers.clone();
                        let bodies = self.bodies.clone();
                        let call = Call { headers, rest, body, bodies, context };
                        answer_or_error(face, (route.serve)(call)).await
                    }
                    Err(refused) => {
                        linger(&self.limits.http, &head.headers, body);
                        error_reply(face, &refused)
                    }
                }
            }
            Routed::WrongMethod { path, allow, .. } => {
                access.set_route(path);
                linger(&self.limits.http, &head.headers, body);
                self.other_method(face, &head.method, head.uri.path(), &allow, &head.headers)
            }
            Routed::Unknown { .. } => {
                linger(&self.limits.http, &head.headers, body);
                let (method, path) = (shown(head.method.as_str()), shown(head.uri.path()));
                error_reply(face, &ApiError::UnknownRoute { method, path })
            }
        };
        self.cors.allow(&head.headers, reply.headers_mut());
        carry(reply.headers_mut(), &id, face);
        if let Some(response) = access.trace_response() {
            reply.headers_mut().insert(TRACERESPONSE, response);
        }
        access.set_status(reply.status().as_u16());
        let reply = if head.method == Method::HEAD { without_body(reply) } else { reply };
        reply.map(|body| body.recorded(Box::new(access)))
    }
}

impl Service {
    fn context(&self, id: Arc<str>, caller: Caller, access: &Access) -> CallContext {
        CallContext {
            id,
            caller,
            tally: access.tally(),
            trace: access.trace(),
            metrics: self.metrics.clone(),
            limits: self.limits.clone(),
            api: self.api.clone(),
        }
    }

    /// Lets the caller into a route. Default deny: once keys exist, only `Public` is open.
    fn admit(
        &self,
        rule: AccessRule,
        head: &request::Parts,
        peer: Peer,
    ) -> Result<Caller, ApiError> {
        match rule {
            AccessRule::Metrics if self.metrics_public => Ok(Caller::anonymous()),
            AccessRule::Public => Ok(Caller::anonymous()),
            // No keys mean nobody here, not everybody.
            AccessRule::Admin if self.admin_keys.is_open() => Err(ApiError::MissingKey),
            AccessRule::Admin => self.admin_keys.authenticate(&head.headers),
            AccessRule::Key | AccessRule::Metrics => {
                // A key that a page cannot know protects better than any name.
                if self.callers.is_open() && !self.hosts.allow(&head.uri, &head.headers) {
                    return Err(ApiError::ForeignHost);
                }
                self.callers.authenticate(&head.headers, peer.address)
            }
        }
    }

    fn other_method(
        &self,
        face: &Face,
        method: &Method,
        path: &str,
        allow: &str,
        headers: &HeaderMap,
    ) -> Reply {
        if method == Method::OPTIONS {
            let mut reply = Response::new(ReplyBody::full(""));
            *reply.status_mut() = StatusCode::NO_CONTENT;
            if let Ok(value) = HeaderValue::from_str(allow) {
                reply.headers_mut().insert(ALLOW, value);
            }
            self.cors.allow_preflight(headers, allow, reply.headers_mut());
            return reply;
        }
        let (method, path) = (shown(method.as_str()), shown(path));
        error_reply(face, &ApiError::WrongMethod { method, path, allow: allow.to_string() })
    }
}

async fn answer_or_error(
    face: &Face,
    handler: futures_util::future::BoxFuture<'static, Result<Reply, ApiError>>,
) -> Reply {
    match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => error_reply(face, &error),
        Err(_panic) => {
            tracing::error!("a request handler panicked");
            error_reply(face, &ApiError::Internal)
        }
    }
}

/// The face's shape of an error, with the headers that its status asks for.
fn error_reply(face: &Face, error: &ApiError) -> Reply {
    let mut reply = (face.error)(error);
    let headers = reply.headers_mut();
    if let Some(seconds) = error.retry_after_s() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    match error {
        ApiError::WrongMethod { allow, .. } => {
            if let Ok(value) = HeaderValue::from_str(allow) {
                headers.insert(ALLOW, value);
            }
        }
        ApiError::MissingKey | ApiError::WrongKey | ApiError::ExpiredKey => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    reply
}

/// Headers of answers that pages of other origins may read.
pub const READABLE_HEADERS: &str = "x-request-id, x-pagoda-ignored, x-api-profile, retry-after";

/// Headers of every answer.
fn carry(headers: &mut HeaderMap, id: &str, face: &Face) {
    if let Some(id) = header_value(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(HeaderName::from_static("x-api-profile"), HeaderValue::from_static(face.name));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
}

/// A client's words in an error message: bounded and printable.
fn shown(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(128).collect()
}
