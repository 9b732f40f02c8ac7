//! What an operator is told of models: where each is on its way, what it holds, what runs on it.
//!
//! Numbers of this moment; bytes are those of the memory plan.

use serde_json::{Value, json};

use crate::api::operator::{InMemory, Inventory, Stage};

/// One model.
pub(super) fn model(model: &InMemory) -> Value {
    let InMemory { instance, source, memory, stage } = model;
    let (info, stats) = (instance.engine.info(), instance.engine.stats());
    let state = match stage {
        Stage::Serving => "serving",
        Stage::Draining => "draining",
    };
    json!({
        "name": instance.name(),
        "names": instance.names,
        "state": state,
        "source": source,
        "device": info.device,
        "dtype": info.dtype.name(),
        "quantization": info.quantization.map(|quantization| quantization.name()),
        "kv_cache_dtype": info.kv_dtype.name(),
        "max_model_len": info.max_model_len,
        "created": instance.created,
        "memory": {
            "weights_bytes": memory.weights,
            "activations_bytes": memory.activations,
            "scratch_bytes": memory.scratch,
            "kv_cache_bytes": memory.kv_cache,
            "total_bytes": memory.total(),
        },
        "requests": {"running": stats.running, "waiting": stats.waiting},
    })
}

/// All of them, those that are about to come among them.
pub(super) fn all(inventory: &Inventory) -> Value {
    let models: Vec<Value> = inventory.models.iter().map(model).collect();
    let changing = inventory.changing.iter().map(|(name, how)| json!({"name": name, "state": how}));
    json!({
        "models": models,
        "changing": changing.collect::<Vec<_>>(),
        "memory": {
            "allowed_bytes": inventory.memory_allowed,
            "promised_bytes": inventory.memory_promised,
        },
    })
}

/// What has a name: the model that serves under it before one that leaves, or one that comes.
pub(super) fn named(inventory: &Inventory, name: &str) -> Option<Value> {
    let has_name = |stage: Stage| {
        let mut models = inventory.models.iter().rev();
        models.find(|one| one.stage == stage && one.instance.has_name(name))
    };
    let found = has_name(Stage::Serving).or_else(|| has_name(Stage::Draining));
    let coming = inventory.changing.iter().find(|(changing, _)| changing == name);
    let coming = coming.map(|(name, how)| json!({"name": name, "state": how}));
    found.map(model).or(coming)
}
