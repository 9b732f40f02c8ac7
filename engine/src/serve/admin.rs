//! What an operator asks for, done: a model is loaded from below the folder of models, takes a
//! name, takes another one's place, or goes.
//!
//! Every change holds a claim on its names until it is over, on a task of its own: whoever asked may
//! leave. Must never read outside the folder that the settings name.

use std::fs::DirEntry;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use pagoda_kernels::error::KernelError;
use pagoda_kernels::heap;

use crate::api::error::ApiError;
use crate::api::models::{Change, Claim};
use crate::api::operator::{Gone, InMemory, Inventory, Operator, Wanted};
use crate::config::ModelConfig;
use crate::config::models::folder_of;
use crate::config::resolve::ConfigError;
use crate::memory::{Beside, KvBudget, MachineMemory};
use crate::model::LoadError;
use crate::model::load::DEFAULT_MEMORY_SHARE;
use crate::serve::lineup::{Lineup, Load};
use crate::serve::load::StartError;
use crate::serve::{chain, on_load_thread};

/// Models in memory at most, those that leave among them: each has threads of its own.
const MODELS_MAX: usize = 64;

/// When whoever asks for one more while too many wait should ask again.
const RETRY_AFTER_S: u32 = 5;

/// Settings that name files, which only who starts the process may name.
const OPTIONS_WITH_PATHS: [&str; 1] = ["chat-template"];

impl<L: Load> Operator for Arc<Lineup<L>> {
    fn load(&self, wanted: Wanted) -> BoxFuture<'static, Result<InMemory, ApiError>> {
        let lineup = self.clone();
        async move {
            let models = &lineup.api.models;
            let place = lineup.places_to_load.clone().try_acquire_owned();
            let place = place.map_err(|_| ApiError::Busy { retry_after_s: RETRY_AFTER_S })?;
            let claim = match wanted.replace {
                true => models.claim_served(&wanted.name, Change::Replace)?,
                false => models.claim_new(vec![wanted.name.clone()])?,
            };
            let load = load_claimed(lineup.clone(), claim, wanted);
            let task = tokio::spawn(load.inspect(|_| drop(place)));
            tokio::select! {
                done = task => done.unwrap_or(Err(ApiError::Internal)),
                () = lineup.api.drains() => Err(ApiError::ShuttingDown),
            }
        }
        .boxed()
    }

    fn unload(
        &self,
        name: String,
        drain_timeout: Option<Duration>,
    ) -> BoxFuture<'static, Result<Gone, ApiError>> {
        let lineup = self.clone();
        async move {
            let claim = lineup.api.models.claim_served(&name, Change::Unload)?;
            let task = tokio::spawn(unload_claimed(lineup.clone(), claim, drain_timeout));
            tokio::select! {
                done = task => done.unwrap_or(Err(ApiError::Internal)),
                () = lineup.api.drains() => Err(ApiError::ShuttingDown),
            }
        }
        .boxed()
    }

    fn inventory(&self) -> Inventory {
        let share = KvBudget::Share(self.defaults.memory_share().unwrap_or(DEFAULT_MEMORY_SHARE));
        let changing = self.api.models.changing();
        Inventory {
            models: self.in_memory(),
            changing: changing.into_iter().map(|(name, change)| (name, change.word())).collect(),
            memory_allowed: Beside::default().room(share, &MachineMemory::read()).1,
            memory_promised: self.promised(),
        }
    }
}

async fn load_claimed<L: Load>(
    lineup: Arc<Lineup<L>>,
    claim: Claim,
    wanted: Wanted,
) -> Result<InMemory, ApiError> {
    let turn = lineup.turn_to_load.lock().await;
    if lineup.api.is_draining() {
        return Err(ApiError::ShuttingDown);
    }
    if lineup.in_memory().len() >= MODELS_MAX {
        let told = format!("{MODELS_MAX} models are in memory already");
        return Err(ApiError::NoMemory(told));
    }
    let drain_timeout = wanted.drain_timeout.unwrap_or(lineup.drain_timeout);
    let (loader, names) = (lineup.clone(), claim.names().to_vec());
    let load = move || {
        let config = config_of(&loader, names, wanted)?;
        let opened = loader.load.open(&config, &loader.shared).map_err(told)?;
        let beside = Beside { promised: loader.promised(), ..Beside::default() };
        loader.load.load(opened, (&config, &loader.shared), beside).map_err(told)
    };
    let loaded = on_load_thread(load).await.ok().flatten().unwrap_or(Err(ApiError::Internal));
    let loaded = loaded.inspect_err(|error| {
        // What was packed before it failed.
        heap::give_back();
        tracing::warn!(model = claim.names()[0], %error, "a model was not loaded");
    })?;
    if lineup.api.is_draining() {
        return Err(ApiError::ShuttingDown);
    }
    let model = lineup.hold(loaded);
    drop(turn);
    tracing::info!(model = model.instance.name(), bytes = model.memory.total(), "loaded");
    if let Some(replaced) = claim.serve(&model.instance) {
        let lineup = lineup.clone();
        tokio::spawn(async move { lineup.leave(replaced, drain_timeout).await });
    }
    Ok(model)
}

async fn unload_claimed<L: Load>(
    lineup: Arc<Lineup<L>>,
    claim: Claim,
    drain_timeout: Option<Duration>,
) -> Result<Gone, ApiError> {
    let Some(instance) = claim.withdraw() else { return Err(ApiError::Internal) };
    Ok(lineup.leave(instance, drain_timeout.unwrap_or(lineup.drain_timeout)).await)
}

/// What the settings mean for a model that came over the network.
fn config_of<L>(
    lineup: &Lineup<L>,
    names: Vec<String>,
    wanted: Wanted,
) -> Result<ModelConfig, ApiError> {
    let Wanted { path, options, .. } = wanted;
    if let Some(name) = OPTIONS_WITH_PATHS.iter().find(|name| options.contains_key(**name)) {
        let message = format!("'{name}' names a file, which only a start may do.");
        return Err(ApiError::invalid("options", "invalid_value", message));
    }
    let folder = match folder_of(&path) {
        Some(path) => Some(below(lineup.models_dir.as_deref(), &path)?),
        None => None,
    };
    lineup.defaults.with(names, folder, options).map_err(|error: ConfigError| {
        let told = chain(&error);
        let told = told.strip_prefix("model: ").unwrap_or(&told);
        ApiError::invalid("options", "invalid_value", format!("Invalid options: {told}."))
    })
}

/// The folder that `path` names below `models_dir`, all links followed: its own, and those to files.
fn below(models_dir: Option<&Path>, path: &Path) -> Result<PathBuf, ApiError> {
    let Some(models_dir) = models_dir else {
        let told = "Only `builtin` may be loaded: the server was started without --models-dir.";
        return Err(ApiError::PathNotAllowed(told.into()));
    };
    // One answer to all: what lies elsewhere is not told apart from what is not there.
    let refused =
        || ApiError::PathNotAllowed("The path names no folder below the folder of models.".into());
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(refused());
    }
    let root = models_dir.canonicalize().map_err(|_| refused())?;
    let folder = root.join(path).canonicalize().map_err(|_| refused())?;
    if !folder.starts_with(&root) || folder == root {
        return Err(refused());
    }
    let leads_out = |entry: std::io::Result<DirEntry>| {
        let place = entry.and_then(|entry| entry.path().canonicalize());
        // One that leads nowhere is as good as not there.
        place.is_ok_and(|place| !place.starts_with(&root))
    };
    if folder.read_dir().map_err(|_| refused())?.any(leads_out) {
        let told = "The folder holds a link that leads out of the folder of models.";
        return Err(ApiError::PathNotAllowed(told.into()));
    }
    Ok(folder)
}

/// A load that failed, as its operator is told.
fn told(error: StartError) -> ApiError {
    let StartError::Model(error) = error else { return ApiError::LoadFailed(chain(&error)) };
    let told = chain(&error);
    match error {
        LoadError::Memory(_)
        | LoadError::DeviceFull { .. }
        | LoadError::Device { source: KernelError::OutOfMemory { .. }, .. } => {
            ApiError::NoMemory(told)
        }
        _ => ApiError::LoadFailed(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_below_the_folder_of_models_are_found() {
        let place = tempfile::tempdir().unwrap();
        let (models, outside) = (place.path().join("models"), place.path().join("outside"));
        for folder in [&models.join("org/a"), &outside, &place.path().join("models-more")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(models.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, models.join("way-out")).unwrap();
        std::os::unix::fs::symlink(models.join("org/a"), models.join("alias")).unwrap();
        let found = |path: &str| below(Some(&models), Path::new(path));
        let a = models.join("org/a").canonicalize().unwrap();
        assert_eq!(found("org/a").unwrap(), a);
        assert_eq!(found("./org//a/").unwrap(), a);
        assert_eq!(found("alias").unwrap(), a, "a link within stays within");
        assert_eq!(found(a.to_str().unwrap()).unwrap(), a, "the whole path is the same place");
        let mut told = Vec::new();
        for path in [
            "",
            ".",
            "..",
            "../outside",
            "org/../org/a",
            "org/a/../../../outside",
            "way-out",
            "file",
            "no-such",
            "/",
            "/etc",
            "../models-more",
            "a\0b",
        ] {
            let refused = found(path).unwrap_err();
            assert!(matches!(refused, ApiError::PathNotAllowed(_)), "{path}");
            told.push(refused.to_string());
        }
        assert!(found(outside.to_str().unwrap()).is_err());
        told.dedup();
        assert_eq!(told.len(), 1, "what is elsewhere looks like what is nowhere");
        assert!(below(None, &a).unwrap_err().to_string().contains("--models-dir"));
    }

    #[test]
    fn files_of_a_model_are_below_the_folder_of_models_too() {
        let place = tempfile::tempdir().unwrap();
        let (models, secret) = (place.path().join("models"), place.path().join("secret"));
        let [a, blobs] = ["a", "blobs"].map(|name| models.join(name));
        for folder in [&a, &blobs] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for file in [&blobs.join("weights"), &secret] {
            std::fs::write(file, "x").unwrap();
        }
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, a.join(name)).unwrap();
        // As in a cache of the hub.
        link(Path::new("../blobs/weights"), "model.safetensors");
        link(Path::new("nowhere"), "README.md");
        assert!(below(Some(&models), Path::new("a")).is_ok());
        link(&secret, "config.json");
        let refused = below(Some(&models), Path::new("a")).unwrap_err();
        assert!(matches!(&refused, ApiError::PathNotAllowed(told) if told.contains("leads out")));
    }
}
