//! What data planes ask for: the feed, and that it is told how far they are.
//!
//! For nobody else: the credential is the secret that all planes of an installation share.

use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use pagoda_http::reply::{Reply, ReplyBody, json};
use pagoda_wire::snapshot::Revision;
use serde::Deserialize;
use serde_json::json;

use crate::feed::planes::{Report, report};
use crate::feed::stream::frames;
use crate::http::call::Call;
use crate::http::route::{Access, Face, Failure, Route};
use crate::profiles::listener;

/// The planes' own routes.
pub static FACE: Face = Face {
    name: "pagoda",
    routes: &[
        Route {
            method: Method::GET,
            path: "/internal/v1/feed",
            access: Access::Plane,
            serve: feed,
        },
        Route {
            method: Method::POST,
            path: "/internal/v1/applied",
            access: Access::Plane,
            serve: applied,
        },
    ],
    fault: listener::failed,
};

type Answered = BoxFuture<'static, Result<Reply, Failure>>;

#[derive(Deserialize)]
struct Since {
    since: Option<Revision>,
}

fn feed(call: Call) -> Answered {
    Box::pin(async move {
        let Since { since } = call.context.query()?;
        let frames = frames(call.context.operations, since);
        let mut reply = Response::new(ReplyBody::frames(Box::pin(frames)));
        let lines = HeaderValue::from_static("application/x-ndjson");
        reply.headers_mut().insert(CONTENT_TYPE, lines);
        Ok(reply)
    })
}

fn applied(call: Call) -> Answered {
    Box::pin(async move {
        let (context, told) = call.read::<Report>().await?;
        let address = context.actor.address.map(|address| address.to_string());
        report(&context.operations.database, &told, &address.unwrap_or_default()).await?;
        Ok(json(StatusCode::OK, &json!({})))
    })
}
