//! The enterprise platform's contract: users, keys, models and login, in one envelope.
//!
//! Answers are `{"code", "message", "data"}`; a number other than 0 says what went wrong.

/// The envelope, and the numbers of what went wrong.
pub mod envelope;

/// Lists and times in this contract's form.
mod listing;

/// Login and refresh.
mod auth;

/// Users, for administrators.
mod users;

/// API keys, for administrators.
mod keys;

/// Models, for administrators.
mod models;

#[cfg(test)]
mod tests;

use hyper::Method;

use crate::http::route::{Access, Face, Route};
use crate::operations::rbac::Permission;

/// The profile.
pub static FACE: Face = Face { name: "enterprise", routes: ROUTES, fault: envelope::failed };

/// Every route of the document that the control plane serves.
const ROUTES: &[Route] = &[
    Route {
        method: Method::POST,
        path: "/api/v1/auth/login",
        access: Access::Public,
        serve: auth::login,
    },
    Route {
        method: Method::POST,
        path: "/api/v1/auth/refresh",
        access: Access::Public,
        serve: auth::refresh,
    },
    Route {
        method: Method::GET,
        path: "/api/v1/admin/users",
        access: Access::May(Permission::ReadUsers),
        serve: users::list,
    },
    Route {
        method: Method::POST,
        path: "/api/v1/admin/users",
        access: Access::May(Permission::WriteUsers),
        serve: users::create,
    },
    Route {
        method: Method::GET,
        path: "/api/v1/admin/users/{userId}",
        access: Access::May(Permission::ReadUsers),
        serve: users::find,
    },
    Route {
        method: Method::PUT,
        path: "/api/v1/admin/users/{userId}",
        access: Access::May(Permission::WriteUsers),
        serve: users::update,
    },
    Route {
        method: Method::GET,
        path: "/api/v1/admin/keys",
        access: Access::May(Permission::ReadKeys),
        serve: keys::list,
    },
    Route {
        method: Method::POST,
        path: "/api/v1/admin/keys",
        access: Access::May(Permission::WriteKeys),
        serve: keys::create,
    },
    Route {
        method: Method::PUT,
        path: "/api/v1/admin/keys/{keyId}",
        access: Access::May(Permission::WriteKeys),
        serve: keys::update,
    },
    Route {
        method: Method::DELETE,
        path: "/api/v1/admin/keys/{keyId}",
        access: Access::May(Permission::WriteKeys),
        serve: keys::delete,
    },
    Route {
        method: Method::POST,
        path: "/api/v1/admin/keys/{keyId}/rotate",
        access: Access::May(Permission::WriteKeys),
        serve: keys::rotate,
    },
    Route {
        method: Method::GET,
        path: "/api/v1/admin/models",
        access: Access::May(Permission::WriteModels),
        serve: models::list,
    },
    Route {
        method: Method::POST,
        path: "/api/v1/admin/models",
        access: Access::May(Permission::WriteModels),
        serve: models::create,
    },
    Route {
        method: Method::PUT,
        path: "/api/v1/admin/models/{modelId}",
        access: Access::May(Permission::WriteModels),
        serve: models::update,
    },
];
