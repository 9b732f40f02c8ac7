//! Operations that profiles call: complete, chat, tokenize. They know no profile and no socket.
//!
//! [`Api`] finds the instance that a name means; [`Instance`] does the work. One map from names
//! to instances, swapped whole, so that a model can be replaced while others serve.

/// Everything that can go wrong with a request.
pub mod error;

/// How an answer is to be generated.
pub mod options;

/// A model that serves.
pub mod instance;

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
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use error::ApiError;
use instance::Instance;

use crate::metrics::Metrics;

/// What this process serves, and in which state it is.
pub struct Api {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    instances: RwLock<Arc<[Arc<Instance>]>>,
    draining: AtomicBool,
    started: Instant,
    step_time_max: Duration,
}

/// Whether the process is alive and whether it takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Takes requests.
    Ready,
    /// Alive, the model is still loading.
    Loading,
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
            instances: RwLock::new(Arc::new([])),
            draining: AtomicBool::new(false),
            started: Instant::now(),
        })
    }

    /// Serves these from now on; requests that run on others end there.
    pub fn serve(&self, instances: Vec<Arc<Instance>>) {
        *self.instances.write().unwrap_or_else(PoisonError::into_inner) = instances.into();
    }

    /// All instances; the first one is the active model.
    pub fn instances(&self) -> Arc<[Arc<Instance>]> {
        self.instances.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The instance that a request means. No name, an empty one and `default` mean the active
    /// model.
    pub fn instance(&self, name: Option<&str>) -> Result<Arc<Instance>, ApiError> {
        let instances = self.instances();
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::ShuttingDown);
        }
        let active = instances.first().ok_or(ApiError::NotReady)?;
        match name {
            None | Some("" | "default") => Ok(active.clone()),
            Some(name) => {
                let found = instances.iter().find(|instance| instance.has_name(name));
                // Neither control characters nor those that turn a line's direction.
                let is_shown = |c: &char| c.is_alphanumeric() || c.is_ascii_graphic() || *c == ' ';
                let shown = || name.chars().filter(is_shown).take(128).collect();
                found.cloned().ok_or_else(|| ApiError::ModelNotFound(shown()))
            }
        }
    }

    /// Not ready from now on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// In which state the process is.
    pub fn condition(&self) -> Condition {
        let instances = self.instances();
        let hangs =
            |instance: &Arc<Instance>| instance.engine.step_running_for() > self.step_time_max;
        if self.draining.load(Ordering::Relaxed) {
            Condition::Draining
        } else if instances.iter().any(|one| !one.engine.is_serving() || hangs(one)) {
            Condition::Failed
        } else if instances.is_empty() {
            Condition::Loading
        } else {
            Condition::Ready
        }
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A step that takes longer has hung; the largest prefill on a slow CPU stays far below.
pub const STEP_TIME_MAX: Duration = Duration::from_secs(120);
