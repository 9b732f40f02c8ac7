//! `pagoda models`: the models of the hub that are on this machine, and what memory each needs.
//!
//! Reads configurations and the headers of weights, by the same code as a start, and changes
//! nothing. One model that cannot be served keeps nobody from reading about the others.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::config::hub::HubSettings;
use crate::hub::{Cache, HubError, ModelId, Snapshot, missing};
use crate::memory::gib;
use crate::model::size::{KvBytes, Sizes};
use crate::model::{Checkpoint, ModelSource};

/// The list, for a person or as JSON.
pub fn list(settings: &HubSettings, json: bool) -> Result<String, HubError> {
    let place = settings.cache.as_deref().ok_or(HubError::NoCache)?;
    let models = look(&Cache::at(place));
    if json {
        let models: Vec<Value> = models.iter().map(CachedModel::json).collect();
        return Ok(json!({"cache": place.display().to_string(), "models": models}).to_string());
    }
    Ok(match &models[..] {
        [] => format!(
            "no models in {}; `pagoda serve --model org/name` downloads one",
            place.display()
        ),
        models => format!("{}\nin {}", table(models), place.display()),
    })
}

/// A model at a commit.
struct CachedModel {
    id: ModelId,
    snapshot: Snapshot,
    disk_bytes: u64,
    state: State,
}

/// Whether it can be served.
enum State {
    /// As it is, in this much memory.
    Usable { architecture: &'static str, sizes: Sizes },
    /// When the rest is downloaded.
    Incomplete { missing: String, partial_bytes: u64 },
    /// Never, as it is.
    Unusable { why: String },
}

fn look(cache: &Cache) -> Vec<CachedModel> {
    let mut found = Vec::new();
    for id in cache.models() {
        let model = cache.model(&id);
        for snapshot in model.snapshots() {
            let state = match missing(&snapshot.folder, true) {
                Some(missing) => {
                    State::Incomplete { missing, partial_bytes: model.partial_bytes() }
                }
                None => state(&snapshot),
            };
            let disk_bytes = snapshot.disk_bytes();
            found.push(CachedModel { id: id.clone(), snapshot, disk_bytes, state });
        }
    }
    found
}

fn state(snapshot: &Snapshot) -> State {
    match Checkpoint::open(&ModelSource::Folder(snapshot.folder.clone())) {
        Ok(checkpoint) => {
            let known = checkpoint.config.family.architectures;
            let architecture = known.first().copied().unwrap_or_default();
            State::Usable { architecture, sizes: checkpoint.sizes() }
        }
        Err(error) => {
            // The folder is long and said already.
            let folder = format!("{}/", snapshot.folder.display());
            State::Unusable { why: error.to_string().replace(&folder, "") }
        }
    }
}

impl CachedModel {
    /// Names of the commit, or its beginning.
    fn revision(&self) -> String {
        match &self.snapshot.revisions[..] {
            [] => self.snapshot.commit[..12].to_owned(),
            names => names.join(", "),
        }
    }

    fn json(&self) -> Value {
        let Snapshot { commit, revisions, folder } = &self.snapshot;
        let state = match &self.state {
            State::Usable { architecture, sizes } => {
                let of = |(name, bytes): &(&str, u64)| ((*name).to_owned(), json!(bytes));
                let weights: serde_json::Map<_, _> = sizes.weights.iter().map(of).collect();
                let of = |(name, kv): &(&str, KvBytes)| {
                    let KvBytes { per_token, windows } = kv;
                    ((*name).to_owned(), json!({"per_token": per_token, "windows": windows}))
                };
                let kv: serde_json::Map<_, _> = sizes.kv.iter().map(of).collect();
                json!({
                    "usable": true,
                    "architecture": architecture,
                    "dtype": sizes.dtype.name(),
                    "max_model_len": sizes.max_model_len,
                    "weight_bytes": weights,
                    "kv_bytes": kv,
                })
            }
            State::Incomplete { missing, partial_bytes } => {
                json!({"usable": false, "missing": missing, "partial_bytes": partial_bytes})
            }
            State::Unusable { why } => json!({"usable": false, "why": why}),
        };
        let mut whole = json!({
            "id": self.id.to_string(),
            "commit": commit,
            "revisions": revisions,
            "folder": folder.display().to_string(),
            "disk_bytes": self.disk_bytes,
        });
        if let (Some(whole), Value::Object(state)) = (whole.as_object_mut(), state) {
            whole.extend(state);
        }
        whole
    }

    /// What stands behind name, revision and size on disk.
    fn columns(&self) -> Result<Vec<String>, String> {
        match &self.state {
            State::Usable { architecture, sizes } => {
                let weights = sizes.weights.iter().map(|(_, bytes)| gib(*bytes));
                let kv = sizes.kv.iter().map(|(_, kv)| gib(kv.per_token));
                let windows = sizes.kv.first().map_or(0, |(_, kv)| kv.windows);
                let windows = if windows == 0 { "-".to_owned() } else { gib(windows) };
                let own = [sizes.dtype.name().to_owned()];
                let last = [windows, (*architecture).to_owned()];
                Ok(own.into_iter().chain(weights).chain(kv).chain(last).collect())
            }
            State::Incomplete { missing, partial_bytes: 0 } => {
                Err(format!("incomplete: {missing} is missing; serving it downloads the rest"))
            }
            State::Incomplete { missing, partial_bytes } => Err(format!(
                "incomplete: {missing} is missing, {} are there in parts; serving it downloads the \
                 rest",
                gib(*partial_bytes)
            )),
            State::Unusable { why } => Err(format!("cannot be served: {why}")),
        }
    }
}

/// Memory is that of the weights, as they are and with each quantization, then that of a token in
/// the KV cache, as it is and in fp8, and what layers with a window add for a sequence.
const HEADS: [&str; 12] = [
    "MODEL",
    "REVISION",
    "ON DISK",
    "TYPE",
    "WEIGHTS",
    "Q8_0",
    "Q4_0",
    "FP8",
    "KV/TOKEN",
    "KV FP8",
    "KV WINDOWS",
    "ARCHITECTURE",
];

fn table(models: &[CachedModel]) -> String {
    let mut rows = vec![(HEADS.map(str::to_owned).to_vec(), None)];
    for model in models {
        let mut row = vec![model.id.to_string(), model.revision(), gib(model.disk_bytes)];
        let note = match model.columns() {
            Ok(columns) => {
                row.extend(columns);
                None
            }
            Err(note) => Some(note),
        };
        rows.push((row, note));
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|(row, _)| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    let mut text = String::new();
    for (row, note) in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let mut line = cells.chain(note.clone()).collect::<Vec<_>>().join("  ");
        line.truncate(line.trim_end().len());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests;
