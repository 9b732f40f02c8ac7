//! The models of a process, as they come and go: loads them one at a time, accounts for their
//! memory, and lets those that leave finish.
//!
//! Who is loaded is in the list of what is held before its name means it, and leaves the list when
//! its engine thread has ended and its memory is given back. Decides nothing about who may ask.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pagoda_kernels::heap;
use tokio::sync::Semaphore;

use crate::api::Api;
use crate::api::instance::Instance;
use crate::api::observe;
use crate::api::operator::{Gone, InMemory, Stage};
use crate::config::{Config, ModelConfig, ModelDefaults};
use crate::memory::Beside;
use crate::serve::device::OnGpu;
use crate::serve::load::{Loaded, Opened, Shared, StartError};
use crate::step::EngineThread;
use crate::text::Rendering;

/// Makes instances from settings.
pub(crate) trait Load: Send + Sync + 'static {
    /// A model before its weights.
    type Opened: Send;

    /// Opens what is small.
    fn open(&self, config: &ModelConfig, shared: &Shared) -> Result<Self::Opened, StartError>;

    /// Bytes of the host's memory that it will take at least.
    fn least_bytes(&self, opened: &Self::Opened, config: &ModelConfig) -> Result<u64, StartError>;

    /// Loads the rest.
    fn load(
        &self,
        opened: Self::Opened,
        of: (&ModelConfig, &Shared),
        beside: Beside,
    ) -> Result<Loaded, StartError>;
}

/// From checkpoints, whose templates are rendered where it says.
pub(crate) struct FromFiles(pub(crate) Rendering);

impl Load for FromFiles {
    type Opened = Opened;

    fn open(&self, config: &ModelConfig, shared: &Shared) -> Result<Opened, StartError> {
        Opened::open(config, shared, &self.0)
    }

    fn least_bytes(&self, opened: &Opened, config: &ModelConfig) -> Result<u64, StartError> {
        opened.least_bytes(config)
    }

    fn load(
        &self,
        opened: Opened,
        (config, shared): (&ModelConfig, &Shared),
        beside: Beside,
    ) -> Result<Loaded, StartError> {
        opened.load(config, shared, beside)
    }
}

/// The models of a process.
pub(crate) struct Lineup<L> {
    pub(super) api: Arc<Api>,
    pub(super) shared: Shared,
    pub(super) load: L,
    pub(super) defaults: ModelDefaults,
    pub(super) models_dir: Option<PathBuf>,
    /// How long requests on a model that leaves may go on.
    pub(super) drain_timeout: Duration,
    /// Held by whoever loads: what fits is decided for one model after another.
    pub(super) turn_to_load: Arc<tokio::sync::Mutex<()>>,
    /// Places of models that are asked for and not yet loaded.
    pub(super) places_to_load: Arc<Semaphore>,
    held: Mutex<Vec<Held>>,
}

/// A model in memory.
struct Held {
    model: InMemory,
    /// Taken by whoever waits for its end.
    thread: Option<EngineThread>,
    _on_gpu: Option<OnGpu>,
}

/// A model that the process began with.
pub(crate) struct Begun {
    /// It.
    pub(crate) instance: Arc<Instance>,
    /// Lines of the start-up summary.
    pub(crate) summary: String,
    /// How long its load took.
    pub(crate) took: Duration,
}

impl<L: Load> Lineup<L> {
    /// Nothing is loaded yet.
    pub(crate) fn new(api: Arc<Api>, shared: Shared, load: L, config: &Config) -> Arc<Self> {
        Arc::new(Lineup {
            api,
            shared,
            load,
            defaults: config.model_defaults.clone(),
            models_dir: config.models_dir.clone(),
            drain_timeout: config.network.shutdown_timeout,
            turn_to_load: Arc::default(),
            places_to_load: Arc::new(Semaphore::new(LOADS_MAX)),
            held: Mutex::default(),
        })
    }

    /// Loads and serves the first models, each as soon as it is loaded. All are opened before the
    /// weights of any are read: what the later ones need at least is left to them.
    pub(crate) fn begin_with(&self, models: &[ModelConfig]) -> Result<Vec<Begun>, StartError> {
        let mut claims = Vec::with_capacity(models.len());
        let mut waiting = Vec::with_capacity(models.len());
        for config in models {
            let claim = self.api.models.claim_new(config.model.names.clone());
            claims.push(claim.map_err(|error| StartError::Setting {
                setting: "model",
                reason: error.to_string(),
            })?);
            let opened = self.load.open(config, &self.shared)?;
            let least = self.load.least_bytes(&opened, config)?;
            waiting.push((config, opened, least));
        }
        let mut begun = Vec::with_capacity(models.len());
        let (mut to_come, mut parts) = (0, 0);
        for (config, _, least) in &waiting {
            to_come += least;
            parts += part_of(config, *least);
        }
        for (claim, (config, opened, least)) in claims.into_iter().zip(waiting) {
            to_come -= least;
            parts -= part_of(config, least);
            let beside = Beside { promised: self.promised(), to_come, models_to_come: parts };
            let began = Instant::now();
            let mut loaded = self.load.load(opened, (config, &self.shared), beside)?;
            let (summary, took) = (std::mem::take(&mut loaded.summary), began.elapsed());
            let InMemory { instance, .. } = self.hold(loaded);
            claim.serve(&instance);
            begun.push(Begun { instance, summary, took });
        }
        Ok(begun)
    }

    /// Has `loaded` in memory until it leaves.
    pub(super) fn hold(&self, loaded: Loaded) -> InMemory {
        let Loaded { instance, thread, memory, source, on_gpu, .. } = loaded;
        let model = InMemory { instance, source, memory, stage: Stage::Serving };
        let mut held = self.held();
        // Whoever drains all says so first and looks at the list then: one of the two sees this one.
        if self.api.is_draining() {
            model.instance.engine.drain(Duration::ZERO);
        }
        held.push(Held { model: model.clone(), thread: Some(thread), _on_gpu: on_gpu });
        model
    }

    /// Lets a model go whose names mean it no more: waits until whoever found it has ended, at most
    /// `drain_timeout`, fails the rest, and gives its memory back.
    pub(super) async fn leave(&self, instance: Arc<Instance>, drain_timeout: Duration) -> Gone {
        self.with_held(&instance, |held| held.model.stage = Stage::Draining);
        let began = Instant::now();
        // Who still is about to submit, or to write the answer, holds it.
        while Arc::strong_count(&instance) > HOLDERS && began.elapsed() < drain_timeout {
            tokio::time::sleep(LEAVE_LOOK_INTERVAL).await;
        }
        let stats = instance.engine.stats();
        instance.engine.drain(Duration::ZERO);
        if let Some(thread) = self.with_held(&instance, |held| held.thread.take()).flatten() {
            match tokio::task::spawn_blocking(move || thread.join()).await {
                Ok(Ok(Ok(()))) => {}
                // Its requests were told, and nobody else used it.
                _ => tracing::error!(model = instance.name(), "a model that left had failed"),
            }
        }
        let held = {
            let mut held = self.held();
            let at = held.iter().position(|held| Arc::ptr_eq(&held.model.instance, &instance));
            at.map(|at| held.remove(at))
        };
        observe::note(&instance);
        instance.metrics.retire();
        let freed = held.as_ref().map_or(0, |held| held.model.memory.total());
        tracing::info!(model = instance.name(), bytes = freed, "unloaded");
        drop((held, instance));
        // Small pieces lie in pages that the allocator would keep.
        heap::give_back();
        Gone { cut_off: stats.running + stats.waiting, freed }
    }

    /// Returns once an engine that serves has ended, with its thread.
    pub(super) async fn failed(&self) -> Option<EngineThread> {
        loop {
            tokio::time::sleep(ENGINE_LOOK_INTERVAL).await;
            let served = self.api.instances();
            if let Some(instance) = served.iter().find(|one| one.engine.has_failed()) {
                return self.with_held(instance, |held| held.thread.take()).flatten();
            }
        }
    }

    /// Nothing new is taken by any model, and what runs may end until `deadline` from now.
    pub(super) fn drain(&self, deadline: Duration) {
        for held in self.held().iter() {
            held.model.instance.engine.drain(deadline);
        }
    }

    /// The engine threads of all models; `None` while one more is loaded, or one is being waited for.
    pub(super) fn take_threads(&self) -> Option<Vec<EngineThread>> {
        // Whoever loads has a claim, from before its turn until after it.
        if !self.api.models.changing().is_empty() {
            return None;
        }
        self.held().iter_mut().map(|held| held.thread.take()).collect()
    }

    /// Models in memory, oldest first.
    pub(super) fn in_memory(&self) -> Vec<InMemory> {
        self.held().iter().map(|held| held.model.clone()).collect()
    }

    /// Bytes of the host's memory that models hold.
    pub(super) fn promised(&self) -> u64 {
        self.held().iter().map(|held| held.model.memory.on_host()).sum()
    }

    fn with_held<T>(
        &self,
        instance: &Arc<Instance>,
        with: impl FnOnce(&mut Held) -> T,
    ) -> Option<T> {
        let mut held = self.held();
        held.iter_mut().find(|held| Arc::ptr_eq(&held.model.instance, instance)).map(with)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Models that take a part of what is left for KV caches: 1 where no bytes were asked for.
fn part_of(config: &ModelConfig, least: u64) -> u32 {
    u32::from(config.device.kv_bytes.is_none() && least > 0)
}

/// Who holds an instance that nobody uses: the list, and whoever lets it go.
const HOLDERS: usize = 2;

/// Models that are asked for and not yet loaded at most: whoever asked may have left.
pub(super) const LOADS_MAX: usize = 64;

/// How soon the end of a model's last request is noticed.
const LEAVE_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How soon an engine that ended is noticed.
const ENGINE_LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
