//! `/v1/models`: what is served, under every name.

use hyper::StatusCode;
use pagoda_http::reply::{Reply, json};
use serde::Serialize;

use crate::api::error::ApiError;
use crate::api::instance::Instance;
use crate::http::route::Call;

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<()>,
    max_model_len: u32,
}

impl<'a> Model<'a> {
    fn new(id: &'a str, instance: &'a Instance) -> Self {
        Model {
            id,
            object: "model",
            created: instance.created,
            owned_by: "pagoda",
            root: instance.name(),
            parent: None,
            max_model_len: instance.engine.info().max_model_len,
        }
    }
}

#[derive(Serialize)]
struct Models<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// All models.
pub fn list(call: Call) -> Result<Reply, ApiError> {
    let instances = call.context.api.instances();
    let usable = instances.iter().filter(|one| call.context.caller.may_use(&one.names));
    let models = usable.flat_map(|one| one.names.iter().map(|name| Model::new(name, one)));
    Ok(json(StatusCode::OK, &Models { object: "list", data: models.collect() }))
}

/// One model.
pub fn one(call: Call) -> Result<Reply, ApiError> {
    let name = call.rest.unwrap_or_default();
    let instance = call.context.model(Some(&name))?;
    let shown = if instance.has_name(&name) { &name } else { instance.name() };
    Ok(json(StatusCode::OK, &Model::new(shown, &instance)))
}
