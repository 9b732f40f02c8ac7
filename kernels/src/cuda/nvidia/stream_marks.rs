//! What one stream remembers: marks to wait for, and graphs to be replayed.
//!
//! Made while an executor starts, so that a step makes none.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::api::{Api, CAPTURE_THREAD, EVENT_WITHOUT_TIME, Handle, Refused};
use crate::cuda::driver::{GraphIndex, MarkIndex};
use crate::error::KernelError;

/// An event for each mark.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<Vec<Handle>>);

impl Marks {
    fn events(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `mark` behind what `stream` was asked for.
    pub(super) fn set(
        &self,
        api: &Api,
        stream: Handle,
        MarkIndex(mark): MarkIndex,
    ) -> Result<(), Refused> {
        let mut events = self.events();
        while events.len() <= mark as usize {
            let mut event = Handle::NULL;
            // SAFETY: the context is current; writes one handle.
            let code = unsafe { (api.event_create)(&raw mut event, EVENT_WITHOUT_TIME) };
            api.check("cuEventCreate", code)?;
            events.push(event);
        }
        // SAFETY: an event and a stream of ours.
        let code = unsafe { (api.event_record)(events[mark as usize], stream) };
        api.check("cuEventRecord", code)
    }

    /// Returns when the device has passed `mark`.
    pub(super) fn wait(&self, api: &Api, MarkIndex(mark): MarkIndex) -> Result<(), KernelError> {
        let event = self.events().get(mark as usize).copied();
        let event =
            event.ok_or_else(|| KernelError::Fault(format!("mark {mark} was never set")))?;
        // SAFETY: an event of ours.
        let code = unsafe { (api.event_wait)(event) };
        Ok(api.check("cuEventSynchronize", code)?)
    }

    /// Gives all events back.
    pub(super) fn release(&self, api: &Api) {
        for event in self.events().drain(..) {
            // SAFETY: an event of ours, taken from the list.
            let _ = unsafe { (api.event_destroy)(event) };
        }
    }
}

/// Graphs by their index; a forgotten one leaves its place empty.
#[derive(Debug, Default)]
pub(super) struct Graphs(Mutex<Vec<Handle>>);

impl Graphs {
    fn executables(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what `stream` is asked for from now on.
    pub(super) fn begin(api: &Api, stream: Handle) -> Result<(), Refused> {
        // SAFETY: a stream of ours.
        let code = unsafe { (api.capture_begin)(stream, CAPTURE_THREAD) };
        api.check("cuStreamBeginCapture", code)
    }

    /// Keeps what was recorded, ready to run.
    pub(super) fn end(&self, api: &Api, stream: Handle) -> Result<GraphIndex, Refused> {
        let mut graph = Handle::NULL;
        // SAFETY: a stream of ours; writes one handle.
        let code = unsafe { (api.capture_end)(stream, &raw mut graph) };
        api.check("cuStreamEndCapture", code)?;
        let mut executable = Handle::NULL;
        // SAFETY: a graph of ours; writes one handle.
        let made = unsafe { (api.graph_instantiate)(&raw mut executable, graph, 0) };
        // SAFETY: a graph of ours; what was made of it does not need it.
        let _ = unsafe { (api.graph_destroy)(graph) };
        api.check("cuGraphInstantiate", made)?;
        let mut executables = self.executables();
        executables.push(executable);
        let index = GraphIndex(executables.len() as u32 - 1);
        // Else the first replay would do it.
        // SAFETY: both ours.
        let code: c_int = unsafe { (api.graph_upload)(executable, stream) };
        api.check("cuGraphUpload", code)?;
        Ok(index)
    }

    /// Starts all launches of a graph.
    pub(super) fn launch(
        &self,
        api: &Api,
        stream: Handle,
        GraphIndex(graph): GraphIndex,
    ) -> Result<(), KernelError> {
        let executable = self.executables().get(graph as usize).copied().unwrap_or(Handle::NULL);
        if executable == Handle::NULL {
            return Err(KernelError::Fault(format!("graph {graph} is not there")));
        }
        // SAFETY: both ours; its launches are the caller's promise.
        let code = unsafe { (api.graph_launch)(executable, stream) };
        Ok(api.check("cuGraphLaunch", code)?)
    }

    /// Forgets a graph that nothing runs any more.
    pub(super) fn forget(&self, api: &Api, GraphIndex(graph): GraphIndex) {
        let mut executables = self.executables();
        let Some(executable) = executables.get_mut(graph as usize) else { return };
        let executable = std::mem::replace(executable, Handle::NULL);
        if executable != Handle::NULL {
            // SAFETY: ours, taken from the list.
            let _ = unsafe { (api.executable_destroy)(executable) };
        }
    }
}
