//! The envelope of every answer, and the one table of the numbers of what went wrong.

use hyper::StatusCode;
use pagoda_http::reply::{Reply, json};
use serde::Serialize;
use serde_json::Value;

use crate::fault::Fault;
use crate::http::route::Failure;
use crate::profiles::listener::told;

#[derive(Serialize)]
struct Envelope<'a, T> {
    code: u32,
    message: &'a str,
    data: T,
}

/// An answer that went well.
pub fn success<T: Serialize>(data: &T) -> Reply {
    json(StatusCode::OK, &Envelope { code: 0, message: "Success", data })
}

/// What went wrong, in the envelope.
pub fn failed(failure: &Failure) -> Reply {
    let (status, message) = told(failure);
    let code = code(failure, status);
    json(status, &Envelope { code, message: &message, data: Value::Null })
}

/// Numbers of what went wrong. The document gives 40001; the others are the status and a number.
fn code(failure: &Failure, status: StatusCode) -> u32 {
    match failure {
        Failure::Fault(Fault::Unauthenticated(_)) => 40001,
        Failure::Fault(Fault::Invalid { .. }) => 40002,
        Failure::Body { .. } if status == StatusCode::BAD_REQUEST => 40003,
        _ => u32::from(status.as_u16()) * 100 + 1,
    }
}
