//! Routes: what each face offers, and which one a request means.
//!
//! A face is mounted whole under `/profiles/<name>`; the data plane and the balancer rewrite to
//! that. The listener's own face (health, metrics) has no such prefix.

use futures_util::future::BoxFuture;
use hyper::Method;
use pagoda_http::path::{Found, Tail, find};
use pagoda_http::reply::Reply;

use crate::fault::Fault;
use crate::http::call::Call;
use crate::operations::rbac::Permission;

/// A face: its routes and the shape of its errors. One per contract.
pub struct Face {
    /// Name of the profile, for `X-API-Profile`.
    pub name: &'static str,
    /// What it offers.
    pub routes: &'static [Route],
    /// Its shape of what went wrong.
    pub fault: fn(&Failure) -> Reply,
}

/// What a face must be able to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An operation was not done.
    Fault(Fault),
    /// No route has the path.
    UnknownRoute,
    /// The path has other methods: these.
    WrongMethod {
        /// For the `Allow` header.
        allow: String,
    },
    /// The body cannot be read.
    Body {
        /// Its status.
        status: hyper::StatusCode,
        /// What is wrong with it.
        message: String,
    },
}

/// One line of the public surface.
pub struct Route {
    /// `GET` also answers `HEAD`.
    pub method: Method,
    /// Exact path but for `{name}`, each of which takes one segment.
    pub path: &'static str,
    /// Who may call.
    pub access: Access,
    /// What it does.
    pub serve: fn(Call) -> BoxFuture<'static, Result<Reply, Failure>>,
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Public,
    /// Whoever may do this.
    May(Permission),
    /// Data planes.
    Plane,
}

/// What a request means.
pub struct Routed {
    /// Whose shape the answer has.
    pub face: &'static Face,
    /// The route, or why there is none.
    pub found: Found<&'static Route>,
}

/// Faces of no prefix: the first one answers for what none of them has.
pub type Own = (&'static Face, &'static [&'static Face]);

/// Finds the route. `path` is the request's path as it came.
pub fn route(own: Own, faces: &'static [&'static Face], method: &Method, path: &str) -> Routed {
    let mounted = path.strip_prefix("/profiles/").and_then(|rest| {
        let (name, _) = rest.split_once('/')?;
        let face = faces.iter().find(|face| face.name == name)?;
        Some((*face, &rest[name.len()..]))
    });
    if let Some((face, path)) = mounted {
        return Routed { face, found: found(face, method, path) };
    }
    let (first, others) = own;
    let found_in = |face| Routed { face, found: found(face, method, path) };
    let others = others.iter().copied().map(found_in);
    let mut known = others.filter(|routed| !matches!(routed.found, Found::Unknown));
    match found_in(first) {
        Routed { found: Found::Unknown, face } => {
            known.next().unwrap_or(Routed { face, found: Found::Unknown })
        }
        routed => routed,
    }
}

fn found(face: &'static Face, method: &Method, path: &str) -> Found<&'static Route> {
    let routes = face.routes.iter().map(|route| (&route.method, route.path, route));
    find(routes, method, path, Tail::Segment)
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Fault(fault)
    }
}
