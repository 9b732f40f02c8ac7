//! One request on its way into a route: routed, its caller known, its body unread.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};
use pagoda_http::body::{BodyError, json_fault, open_json};
use pagoda_http::limits::Limits;
use pagoda_http::path::Params;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::database::change::Actor;
use crate::fault::Fault;
use crate::http::route::Failure;
use crate::operations::{Operations, Principal};

/// A request on its way into a route.
pub struct Call {
    /// The body, unread.
    pub body: Incoming,
    /// Its bounds.
    pub limits: Limits,
    /// What stays once the body is read.
    pub context: Context,
}

/// What is left of a call once its body is read.
pub struct Context {
    /// What stands in the path.
    pub params: Params,
    /// What stands behind `?`, undecoded.
    pub query: Option<String>,
    /// Request headers.
    pub headers: HeaderMap,
    /// Whose rights the caller has; `None` is anonymous.
    pub principal: Option<Principal>,
    /// What the audit says of the caller.
    pub actor: Actor,
    /// What can be done.
    pub operations: Arc<Operations>,
}

impl Call {
    /// Reads the body as JSON of a known form.
    pub async fn read<T: DeserializeOwned>(self) -> Result<(Context, T), Failure> {
        let Call { body, limits, context } = self;
        let arriving = open_json(&limits, &context.headers, body).map_err(refused)?;
        let text = arriving.whole().await.map_err(refused)?;
        let value = serde_json::from_slice(&text).map_err(|error| Failure::Body {
            status: StatusCode::BAD_REQUEST,
            message: format!("the body is not what this route takes: {}", json_fault(&error)),
        })?;
        Ok((context, value))
    }
}

impl Context {
    /// The query's parameters. One that stands twice is refused, an unknown one is not looked at.
    pub fn query<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let text = self.query.as_deref().unwrap_or_default();
        serde_urlencoded::from_str(text).map_err(|error| Failure::Body {
            status: StatusCode::BAD_REQUEST,
            message: format!("the query is not what this route takes: {error}"),
        })
    }

    /// The caller, who must be known.
    pub fn known(&self) -> Result<&Principal, Failure> {
        let missing = || Fault::Unauthenticated(crate::fault::Unknown::Missing);
        self.principal.as_ref().ok_or_else(|| missing().into())
    }

    /// The id in the path. What is no id names nothing.
    pub fn id(&self, name: &str, what: &'static str) -> Result<Uuid, Failure> {
        let text = self.params.named(name).ok_or(Failure::UnknownRoute)?;
        Uuid::try_parse(text).map_err(|_| Fault::NotFound(what).into())
    }
}

fn refused(error: BodyError) -> Failure {
    let status = match error {
        BodyError::WrongMediaType | BodyError::WrongEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::Late { .. } => StatusCode::REQUEST_TIMEOUT,
        BodyError::Broken => StatusCode::BAD_REQUEST,
    };
    Failure::Body { status, message: error.to_string() }
}
