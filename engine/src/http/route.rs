//! Routes: what a face offers, and which route a request means.
//!
//! The path is looked at exactly once; the route found decides about keys and handler alike.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method};
use pagoda_http::path::{self, Found, Tail};
use pagoda_http::reply::Reply;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::instance::Instance;
use crate::config::Limits;
use crate::http::access::Tally;
use crate::http::body::{BodyBudget, BodyObject};
use crate::http::keys::Caller;
use crate::metrics::HttpMetrics;
use crate::trace::Trace;

/// A face of the server: its routes and the shape of its errors. One per profile.
pub struct Face {
    /// Name of the profile, for `X-API-Profile`.
    pub name: &'static str,
    /// Paths below it that match no route are answered in this face's shape.
    pub base_path: &'static str,
    /// What it offers.
    pub routes: &'static [Route],
    /// Its shape of an error.
    pub error: fn(&ApiError) -> Reply,
}

/// One line of the public surface.
pub struct Route {
    /// `GET` also answers `HEAD`.
    pub method: Method,
    /// Exact path; a last part `{id}` takes the rest of the path, percent-decoded.
    pub path: &'static str,
    /// Who may call.
    pub access: AccessRule,
    /// What it does.
    pub serve: fn(Call) -> BoxFuture<'static, Result<Reply, ApiError>>,
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessRule {
    /// Everyone.
    Public,
    /// Whoever has a key, once keys exist.
    Key,
    /// As `Key`, unless the operator opened the metrics.
    Metrics,
    /// Whoever has a key for changing models; other keys open nothing.
    Admin,
}

/// A request on its way into a route: routed, authenticated, its body unread.
pub struct Call {
    /// Request headers.
    pub headers: HeaderMap,
    /// What `{id}` stands for.
    pub rest: Option<String>,
    /// The body, unread.
    pub body: Incoming,
    /// Reads it.
    pub bodies: Arc<BodyBudget>,
    /// What stays once the body is read.
    pub context: CallContext,
}

/// What is left of a call once its body is read.
#[derive(Clone)]
pub struct CallContext {
    /// Id for logs.
    pub id: Arc<str>,
    /// Who calls.
    pub caller: Caller,
    /// Counts tokens for the log line.
    pub tally: Arc<Tally>,
    /// The trace that the request belongs to.
    pub trace: Trace,
    /// Counts what is odd about requests.
    pub metrics: Arc<HttpMetrics>,
    /// Bounds of what a request may hold.
    pub limits: Arc<Limits>,
    /// The operations.
    pub api: Arc<Api>,
}

impl CallContext {
    /// The model that is asked for. One that the caller may not use is told as one that is not there.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<Instance>, ApiError> {
        let instance = self.api.instance(name)?;
        if self.caller.may_use(&instance.names) {
            return Ok(instance);
        }
        Err(ApiError::ModelNotFound(name.unwrap_or_else(|| instance.name()).into()))
    }
}

impl Call {
    /// Reads the body as a JSON object.
    pub async fn read_object(self) -> Result<(CallContext, BodyObject), ApiError> {
        let object = self.bodies.read_object(&self.headers, self.body).await?;
        Ok((self.context, object))
    }
}

/// The faces of one listener, in the order in which they are asked.
#[derive(Clone, Copy)]
pub struct Router {
    faces: &'static [&'static Face],
}

/// What a request means.
pub enum Routed {
    /// This route of this face.
    Found {
        /// The face.
        face: &'static Face,
        /// The route.
        route: &'static Route,
        /// What `{id}` stands for.
        rest: Option<String>,
    },
    /// The path exists with the methods in `allow`.
    WrongMethod {
        /// The face that has the path.
        face: &'static Face,
        /// Pattern of the path.
        path: &'static str,
        /// For the `Allow` header.
        allow: String,
    },
    /// No face has the path.
    Unknown {
        /// The face that says so.
        face: &'static Face,
    },
}

impl Router {
    /// A router over `faces`; there must be one.
    pub fn new(faces: &'static [&'static Face]) -> Option<Self> {
        (!faces.is_empty()).then_some(Router { faces })
    }

    /// Finds the route. `path` is the request's path as it came.
    pub fn find(&self, method: &Method, path: &str) -> Routed {
        let routes = self.faces.iter().flat_map(|&face| {
            face.routes.iter().map(move |route| (&route.method, route.path, (face, route)))
        });
        match path::find(routes, method, path, Tail::Rest) {
            Found::Route { route: (face, route), params } => {
                Routed::Found { face, route, rest: params.into_last() }
            }
            Found::WrongMethod { first: (face, route), allow } => {
                Routed::WrongMethod { face, path: route.path, allow }
            }
            Found::Unknown => Routed::Unknown { face: self.covering(path) },
        }
    }

    /// The first face whose base path covers `path`, else the first.
    fn covering(&self, path: &str) -> &'static Face {
        let covers = |face: &&&Face| {
            let rest = path.strip_prefix(face.base_path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.faces.iter().find(covers).unwrap_or(&self.faces[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;

    fn serve(_: Call) -> BoxFuture<'static, Result<Reply, ApiError>> {
        Box::pin(async { Err(ApiError::Internal) })
    }

    fn error(_: &ApiError) -> Reply {
        pagoda_http::reply::json(StatusCode::NOT_FOUND, &())
    }

    const fn route(method: Method, path: &'static str) -> Route {
        Route { method, path, access: AccessRule::Key, serve }
    }

    static FIRST: Face = Face {
        name: "first",
        base_path: "/v1",
        routes: &[
            route(Method::GET, "/v1/models"),
            route(Method::GET, "/v1/models/{id}"),
            route(Method::POST, "/v1/both"),
            route(Method::GET, "/v1/both"),
        ],
        error,
    };
    static SECOND: Face = Face {
        name: "second",
        base_path: "/api",
        routes: &[route(Method::POST, "/api/x"), route(Method::POST, "/v1/models")],
        error,
    };

    static FACES: &[&Face] = &[&FIRST, &SECOND];

    fn told(method: Method, path: &str) -> String {
        match Router::new(FACES).unwrap().find(&method, path) {
            Routed::Found { face, route, rest } => {
                format!("{} {} {}", face.name, route.path, rest.unwrap_or_default())
            }
            Routed::WrongMethod { face, allow, .. } => format!("{} 405 {allow}", face.name),
            Routed::Unknown { face } => format!("{} 404", face.name),
        }
    }

    #[test]
    fn paths_match_exactly_and_once() {
        assert_eq!(told(Method::GET, "/v1/models"), "first /v1/models ");
        assert_eq!(told(Method::HEAD, "/v1/models"), "first /v1/models ");
        assert_eq!(told(Method::GET, "/v1/models/org%2Fname"), "first /v1/models/{id} org/name");
        assert_eq!(told(Method::GET, "/v1/models/org/name"), "first /v1/models/{id} org/name");
        assert_eq!(told(Method::POST, "/v1/models"), "second /v1/models ");
        for near in [
            "/v1/models/",
            "//v1/models",
            "/v1//models",
            "/V1/models",
            "/v1/./models",
            "/v1/models%2F",
            "/x/../v1/models",
            "/v1%2Fmodels",
            "/v1/models;a",
            "",
            "*",
            "/v1/models/%zz",
            "/v1/models/%ff",
        ] {
            assert!(told(Method::GET, near).ends_with("404"), "{near}");
        }
    }

    #[test]
    fn the_first_face_that_covers_the_path_answers_for_it() {
        assert_eq!(told(Method::GET, "/api/none"), "second 404");
        assert_eq!(told(Method::GET, "/v1/none"), "first 404");
        assert_eq!(told(Method::GET, "/v1x"), "first 404");
        assert_eq!(told(Method::GET, "/apiary"), "first 404");
        assert_eq!(told(Method::GET, "/api/x"), "second 405 POST, OPTIONS");
        assert_eq!(told(Method::DELETE, "/v1/both"), "first 405 POST, GET, HEAD, OPTIONS");
    }
}
