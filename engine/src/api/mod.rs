//! Operations that profiles call: complete, chat, tokenize. They know no profile and no socket.
//!
//! [`Api`] finds the instance that a name means; [`Instance`] does the work. One list of instances
//! ([`models::Models`]), swapped whole, so that a model can be replaced while others serve.

/// Everything that can go wrong with a request.
pub mod error;

/// How an answer is to be generated.
pub mod options;

/// A model that serves.
pub mod instance;

/// Which instance a name means.
pub mod models;

/// What an operator may do to models.
pub mod operator;

/// Memory that a request takes on its way in.
pub mod room;

/// An answer that is being generated.
pub mod generation;

/// Metrics at this moment.
pub mod observe;

/// A model in numbers, for tests.
#[cfg(test)]
pub(crate) mod test_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use error::ApiError;
use instance::Instance;
use models::Models;
use operator::Operator;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::plane::{Plane, Standing};

/// What this process serves, and in which state it is.
pub struct Api {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Which instance a name means.
    pub models: Arc<Models>,
    operator: OnceLock<Arc<dyn Operator>>,
    plane: OnceLock<Arc<Plane>>,
    has_started: AtomicBool,
    draining: watch::Sender<bool>,
    started: Instant,
    step_time_max: Duration,
}

/// Whether the process is alive and whether it takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Takes requests.
    Ready,
    /// Alive, models to begin with are still loading.
    Loading,
    /// Alive, every model was unloaded.
    Empty,
    /// Alive, finishing what runs.
    Draining,
    /// An engine thread has ended or hangs in a step.
    Failed,
}

impl Api {
    /// Serves nothing yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Self::with_step_time_max(metrics, STEP_TIME_MAX)
    }

    /// Serves nothing yet; an engine whose step takes longer counts as failed.
    pub fn with_step_time_max(metrics: Arc<Metrics>, step_time_max: Duration) -> Arc<Self> {
        Arc::new(Api {
            step_time_max,
            metrics,
            models: Arc::default(),
            operator: OnceLock::new(),
            plane: OnceLock::new(),
            has_started: AtomicBool::new(false),
            draining: watch::Sender::new(false),
            started: Instant::now(),
        })
    }

    /// Serves these, too, and is ready: nothing more has to come first.
    pub fn serve(&self, instances: &[Arc<Instance>]) -> Result<(), ApiError> {
        for instance in instances {
            self.models.claim_new(instance.names.clone())?.serve(instance);
        }
        self.set_started();
        Ok(())
    }

    /// All models to begin with are there.
    pub fn set_started(&self) {
        self.has_started.store(true, Ordering::Relaxed);
    }

    /// All instances; the first one is the active model.
    pub fn instances(&self) -> Arc<[Arc<Instance>]> {
        self.models.served()
    }

    /// From now on `operator` changes what is served. Once only.
    pub fn set_operator(&self, operator: Arc<dyn Operator>) {
        // A second one is a defect of ours and changes nothing.
        let _ = self.operator.set(operator);
    }

    /// From now on callers are those whom `plane` names. Once only.
    pub fn set_plane(&self, plane: Arc<Plane>) {
        // A second one is a defect of ours and changes nothing.
        let _ = self.plane.set(plane);
    }

    /// How the control plane is followed, if one is.
    pub fn plane(&self) -> Option<Standing> {
        self.plane.get().map(|plane| plane.standing())
    }

    /// Who changes what is served, if anybody does.
    pub fn operator(&self) -> Option<Arc<dyn Operator>> {
        self.operator.get().cloned()
    }

    /// The instance that a request means. No name, an empty one and `default` mean the active
    /// model.
    pub fn instance(&self, name: Option<&str>) -> Result<Arc<Instance>, ApiError> {
        if self.is_draining() {
            return Err(ApiError::ShuttingDown);
        }
        let name = name.filter(|name| !matches!(*name, "" | DEFAULT_NAME));
        // Asked before the list is looked at: who has loaded meanwhile is in it.
        let is_loading = self.models.is_loading(name);
        let instances = self.instances();
        let found = match name {
            None => instances.first(),
            Some(name) => instances.iter().find(|instance| instance.has_name(name)),
        };
        match found {
            Some(instance) => Ok(instance.clone()),
            None if is_loading || self.condition() == Condition::Loading => Err(ApiError::NotReady),
            None => Err(ApiError::ModelNotFound(shown(name.unwrap_or(DEFAULT_NAME)))),
        }
    }

    /// Not ready from now on.
    pub fn start_draining(&self) {
        self.draining.send_replace(true);
    }

    /// Whether the process is going away.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns once the process is going away.
    pub async fn drains(&self) {
        // The sender lives as long as this does.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// In which state the process is.
    pub fn condition(&self) -> Condition {
        let instances = self.instances();
        let hangs =
            |instance: &Arc<Instance>| instance.engine.step_running_for() > self.step_time_max;
        if self.is_draining() {
            Condition::Draining
        } else if instances.iter().any(|one| one.engine.has_failed() || hangs(one)) {
            Condition::Failed
        } else if !self.has_started.load(Ordering::Relaxed) {
            Condition::Loading
        } else if instances.is_empty() {
            Condition::Empty
        } else {
            Condition::Ready
        }
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What means the active model in place of its name.
pub const DEFAULT_NAME: &str = "default";

/// A client's name for a model in an error: neither control characters nor those that turn a
/// line's direction.
pub(crate) fn shown(name: &str) -> String {
    let is_shown = |c: &char| c.is_alphanumeric() || c.is_ascii_graphic() || *c == ' ';
    name.chars().filter(is_shown).take(128).collect()
}

/// A step that takes longer has hung; the largest prefill on a slow CPU stays far below.
pub const STEP_TIME_MAX: Duration = Duration::from_secs(120);
