//! Why an engine thread ended: a device fault, or a panic and where.
//!
//! A panic's message may hold what a client sent, so that it is never printed: the hook that is set
//! here tells thread and place alone.

use std::panic::PanicHookInfo;
use std::sync::{Arc, Mutex, PoisonError};

use crate::request::StepError;
use crate::step::{ENGINE_THREAD, EngineThread};

/// Why an engine thread ended though nobody told it to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineEnd {
    /// Us, or the machine: the device failed.
    #[error("the engine ended: {0}")]
    Device(StepError),
    /// Us: an assertion of our own.
    #[error("the engine panicked at {place}")]
    Panicked {
        /// File and line.
        place: String,
    },
    /// It stopped without a fault: ours, unless it was told to.
    #[error("the engine stopped though requests may come")]
    Early,
}

impl EngineEnd {
    /// Waits for the thread, which is about to end, and asks it.
    pub(super) fn of(thread: Option<EngineThread>, panics: &Panics) -> Self {
        let Some(thread) = thread else { return EngineEnd::Early };
        match thread.join() {
            Ok(Ok(())) => EngineEnd::Early,
            Ok(Err(error)) => EngineEnd::Device(error),
            Err(_) => EngineEnd::Panicked { place: panics.of_engine() },
        }
    }
}

/// Where the engine thread panicked last.
#[derive(Clone, Default)]
pub(super) struct Panics(Arc<Mutex<Option<String>>>);

impl Panics {
    /// From now on every panic of the process is one line in the log: thread and place, no message.
    pub(super) fn watch() -> Self {
        let panics = Panics::default();
        let told = panics.clone();
        std::panic::set_hook(Box::new(move |panic| told.note(panic)));
        panics
    }

    fn note(&self, panic: &PanicHookInfo<'_>) {
        let place = panic.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::error!(thread = name, place, "panicked");
        if name == ENGINE_THREAD {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        }
    }

    fn of_engine(&self) -> String {
        let place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.clone().unwrap_or_else(|| "an unknown place".into())
    }
}
