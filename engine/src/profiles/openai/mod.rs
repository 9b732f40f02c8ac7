//! The public OpenAI API, with vLLM's usual extensions: the product's own face.
//!
//! Here stands its whole surface. Parsing goes through the one table of [`fields`]; answers are
//! built from the pieces of [`crate::api::generation`].

/// The table of request fields.
pub mod fields;

/// Typed readers of values.
pub mod values;

/// A body after the table.
pub mod wire;

/// `messages`.
pub mod messages;

/// `prompt`.
pub mod prompts;

/// Parts that all answers share: head, usage, the collected choices.
pub mod answer;

/// What of a prompt an answer tells.
pub mod prompt_part;

/// Whole answers, written while they are sent.
pub mod whole;

/// Log-probabilities in both shapes.
pub mod logprobs;

/// Chat completions.
pub mod chat;

/// Completions.
pub mod completions;

/// Streams of chunks.
pub mod stream;

/// Tokenize and detokenize.
pub mod tokens;

/// The list of models.
pub mod models;

/// The shape of errors.
pub mod errors;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use hyper::Method;
use pagoda_http::reply::Reply;

use crate::api::error::ApiError;
use crate::http::route::{AccessRule, Call, Face, Route};

/// Every route of this face.
pub static FACE: Face = Face {
    name: "openai",
    base_path: "/v1",
    routes: &[
        route(Method::POST, "/v1/chat/completions", |call| chat::serve(call).boxed()),
        route(Method::POST, "/v1/completions", |call| completions::serve(call).boxed()),
        route(Method::GET, "/v1/models", |call| ready(models::list(call)).boxed()),
        route(Method::GET, "/v1/models/{id}", |call| ready(models::one(call)).boxed()),
        route(Method::POST, "/tokenize", |call| tokens::tokenize(call).boxed()),
        route(Method::POST, "/detokenize", |call| tokens::detokenize(call).boxed()),
    ],
    error: errors::render,
};

type Answer = BoxFuture<'static, Result<Reply, ApiError>>;

const fn route(method: Method, path: &'static str, serve: fn(Call) -> Answer) -> Route {
    Route { method, path, access: AccessRule::Key, serve }
}
