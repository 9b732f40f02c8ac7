//! What one stream remembers: marks to wait for, and graphs to be replayed.
//!
//! Made while an executor starts, so that a step makes none.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::api::{Event, Executable, Handle, Refused, Stream, check, sys};
use crate::cuda::driver::{GraphIndex, MarkIndex};
use crate::error::KernelError;

/// An event for each mark.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<Vec<Event>>);

impl Marks {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `count` more; gives the first.
    pub(super) fn reserve(&self, count: u32) -> Result<MarkIndex, Refused> {
        let mut events = self.events();
        let first = events.len() as u32;
        // Without a time: it would cost the device some.
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        for _ in 0..count {
            let mut event = std::ptr::null_mut();
            // SAFETY: the context is current; writes one handle.
            let code = unsafe { sys::cuEventCreate(&raw mut event, flags) };
            check("cuEventCreate", code)?;
            events.push(Handle(event));
        }
        Ok(MarkIndex(first))
    }

    fn event(&self, MarkIndex(mark): MarkIndex) -> Result<Event, KernelError> {
        let event = self.events().get(mark as usize).copied();
        event.ok_or_else(|| KernelError::Fault(format!("mark {mark} is nobody's")))
    }

    /// Sets `mark` behind what `stream` was asked for.
    pub(super) fn set(&self, stream: Stream, mark: MarkIndex) -> Result<(), KernelError> {
        let event = self.event(mark)?;
        // SAFETY: an event and a stream of ours.
        let code = unsafe { sys::cuEventRecord(event.0, stream.0) };
        Ok(check("cuEventRecord", code)?)
    }

    /// Returns when the device has passed `mark`. Until then the thread looks at it again and again, as
    /// long as the process has no more contexts than the machine has cores: an event that blocks would
    /// wake it by an interrupt, tens of microseconds late, in every step. So the engine thread takes a
    /// core of its own whenever it waits for a step, and none when there is nothing to do.
    pub(super) fn wait(&self, mark: MarkIndex) -> Result<(), KernelError> {
        let event = self.event(mark)?;
        // SAFETY: an event of ours.
        let code = unsafe { sys::cuEventSynchronize(event.0) };
        Ok(check("cuEventSynchronize", code)?)
    }

    /// Gives all events back.
    pub(super) fn release(&self) {
        for event in self.events().drain(..) {
            // SAFETY: an event of ours, taken from the list.
            let _ = unsafe { sys::cuEventDestroy_v2(event.0) };
        }
    }
}

/// Graphs by their index; a forgotten one leaves its place empty.
#[derive(Debug, Default)]
pub(super) struct Graphs(Mutex<Vec<Executable>>);

impl Graphs {
    fn executables(&self) -> MutexGuard<'_, Vec<Executable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what `stream` is asked for from now on.
    pub(super) fn begin(stream: Stream) -> Result<(), Refused> {
        // One thread asks for all that this stream does, so nothing is recorded by accident; and a library
        // that loads code meanwhile, which other modes forbid, does not end the capture.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a stream of ours.
        let code = unsafe { sys::cuStreamBeginCapture_v2(stream.0, mode) };
        check("cuStreamBeginCapture", code)
    }

    /// Keeps what was recorded, ready to run.
    pub(super) fn end(&self, stream: Stream) -> Result<GraphIndex, Refused> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: a stream of ours; writes one handle.
        let code = unsafe { sys::cuStreamEndCapture(stream.0, &raw mut graph) };
        check("cuStreamEndCapture", code)?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: a graph of ours; writes one handle.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0) };
        // SAFETY: a graph of ours; what was made of it does not need it.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        check("cuGraphInstantiate", made)?;
        let mut executables = self.executables();
        executables.push(Handle(executable));
        let index = GraphIndex(executables.len() as u32 - 1);
        // Else the first replay would do it.
        // SAFETY: both ours.
        let code = unsafe { sys::cuGraphUpload(executable, stream.0) };
        check("cuGraphUpload", code)?;
        Ok(index)
    }

    /// Starts all launches of a graph.
    pub(super) fn launch(
        &self,
        stream: Stream,
        GraphIndex(graph): GraphIndex,
    ) -> Result<(), KernelError> {
        let executable =
            self.executables().get(graph as usize).copied().unwrap_or(Executable::NULL);
        if executable.is_null() {
            return Err(KernelError::Fault(format!("graph {graph} is not there")));
        }
        // SAFETY: both ours; its launches are the caller's promise.
        let code = unsafe { sys::cuGraphLaunch(executable.0, stream.0) };
        Ok(check("cuGraphLaunch", code)?)
    }

    /// Forgets a graph that nothing runs any more.
    pub(super) fn forget(&self, GraphIndex(graph): GraphIndex) {
        let mut executables = self.executables();
        let Some(executable) = executables.get_mut(graph as usize) else { return };
        let executable = std::mem::replace(executable, Executable::NULL);
        if !executable.is_null() {
            // SAFETY: ours, taken from the list.
            let _ = unsafe { sys::cuGraphExecDestroy(executable.0) };
        }
    }
}
