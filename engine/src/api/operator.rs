//! What an operator may do to the models of a running process: load, replace, unload, look.
//!
//! The words between the face that takes such requests and the process that does them. Knows no
//! socket, and nothing of how a model is loaded.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::api::instance::Instance;
use crate::memory::ModelMemory;

/// A model that is to be loaded.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Name that clients will use.
    pub name: String,
    /// Its folder below the folder of models, or the word for the built-in one.
    pub path: String,
    /// Settings of its own, by their names.
    pub options: Map<String, Value>,
    /// Take the place of whatever has the name.
    pub replace: bool,
    /// How long requests on a replaced one may go on; the process's own time if none is said.
    pub drain_timeout: Option<Duration>,
}

/// How a model went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Sequences that were cut off since the time was over.
    pub cut_off: u64,
    /// Bytes that it held.
    pub freed: u64,
}

/// Where a model is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its name means it.
    Serving,
    /// Nobody finds it any more; what runs on it may end.
    Draining,
}

/// A model that is in memory.
#[derive(Clone)]
pub struct InMemory {
    /// It.
    pub instance: Arc<Instance>,
    /// Where it came from.
    pub source: String,
    /// What it holds.
    pub memory: ModelMemory,
    /// Where it is on its way.
    pub stage: Stage,
}

/// All that there is, at one moment.
#[derive(Clone, Default)]
pub struct Inventory {
    /// Models in memory, oldest first.
    pub models: Vec<InMemory>,
    /// Names that are about to change, and how.
    pub changing: Vec<(String, &'static str)>,
    /// Bytes of the host's memory that models may take in all,
    pub memory_allowed: u64,
    /// and of these, bytes that are promised to models.
    pub memory_promised: u64,
}

/// Changes what a process serves.
pub trait Operator: Send + Sync {
    /// Loads a model and serves it. Goes on when the future is dropped.
    fn load(&self, wanted: Wanted) -> BoxFuture<'static, Result<InMemory, ApiError>>;

    /// Takes a model's names away, lets what runs on it end within `drain_timeout`, and gives its
    /// memory back. Goes on when the future is dropped.
    fn unload(
        &self,
        name: String,
        drain_timeout: Option<Duration>,
    ) -> BoxFuture<'static, Result<Gone, ApiError>>;

    /// What there is.
    fn inventory(&self) -> Inventory;
}
