//! The last step of an administrative write: every live data plane knows of it, or is named.
//!
//! A caller may rely on it: what was taken back is refused everywhere once the answer is there, but
//! for planes that `X-Pagoda-Laggards` names after a second.

use hyper::header::{HeaderName, HeaderValue};
use pagoda_http::reply::Reply;
use pagoda_wire::snapshot::Revision;

use crate::feed::planes::laggards;
use crate::operations::Operations;

/// Names of data planes that do not know of the write yet, with commas between.
const LAGGARDS: HeaderName = HeaderName::from_static("x-pagoda-laggards");

/// Waits for data planes, a second at most. The write stands, whatever comes of it.
pub async fn settle(
    operations: &Operations,
    revision: Option<Revision>,
    mut reply: Reply,
) -> Reply {
    let Some(revision) = revision else { return reply };
    let names = match laggards(&operations.database, revision).await {
        Ok(names) => names.join(","),
        Err(_) => "unknown".into(),
    };
    if !names.is_empty() {
        let unspeakable = HeaderValue::from_static("unknown");
        let value = HeaderValue::from_str(&names).unwrap_or(unspeakable);
        reply.headers_mut().insert(LAGGARDS, value);
    }
    reply
}
