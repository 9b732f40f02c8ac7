//! A driver under which an executor does one thing wrong, as the device sees it; and what was asked
//! of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::machine::CUTS;
use crate::cuda::driver::{
    DevicePointer, Driver, Fill, GraphIndex, HostPointer, Launch, MarkIndex,
};
use crate::cuda::emulated::Emulated;
use crate::error::KernelError;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Slip {
    /// Nothing.
    None,
    /// Results are read, and arrays written again, before the device is there.
    NoWait,
    /// There is nothing to wait for.
    NoMark,
    /// Steps in flight share their page-locked memory.
    OneSet,
    /// A kernel of a graph has an array from when it was recorded, where staging's should be: the
    /// pointer of so many words into its parameters.
    Frozen(&'static str, usize),
    /// Graphs have as many pieces of attention as there are tiles.
    TilesOnly,
}

/// An emulated device that is used without care.
#[derive(Debug)]
pub(super) struct Careless {
    inner: Emulated,
    slip: Slip,
    is_capturing: AtomicBool,
    /// By size.
    host: Mutex<HashMap<usize, HostPointer>>,
    /// Zeros, as staging was at the time of recording.
    frozen: DevicePointer,
    asked: Mutex<Vec<&'static str>>,
}

impl Careless {
    pub(super) fn new(inner: Emulated, slip: Slip) -> Self {
        let frozen = inner.allocate(1 << 16, "what was there").unwrap();
        let (is_capturing, host, asked) = Default::default();
        Careless { inner, slip, is_capturing, host, frozen, asked }
    }

    /// What was asked for since the last call.
    pub(super) fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn note(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
    }
}

impl Driver for Careless {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<DevicePointer, KernelError> {
        self.note("allocate");
        self.inner.allocate(bytes, what)
    }

    unsafe fn release(&self, pointer: DevicePointer) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.release(pointer) }
    }

    unsafe fn upload_with(
        &self,
        to: DevicePointer,
        bytes: usize,
        fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        self.note("upload");
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload_with(to, bytes, fill) }
    }

    unsafe fn download(&self, from: DevicePointer, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.note("download");
        // SAFETY: the caller's promise.
        unsafe { self.inner.download(from, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.note("launch");
        if !self.is_capturing.load(Relaxed) {
            // SAFETY: the caller's promise.
            return unsafe { self.inner.launch(launch) };
        }
        let mut launch = *launch;
        let mut words = vec![0u64; launch.parameter_bytes.div_ceil(8)];
        let from = launch.parameters.cast::<u8>();
        // SAFETY: as many bytes are there, by the caller's promise.
        unsafe {
            let to = words.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, to, launch.parameter_bytes);
        }
        match self.slip {
            Slip::Frozen(kernel, word) if launch.name.starts_with(kernel) => {
                words[word] = self.frozen.0;
            }
            Slip::TilesOnly if launch.name.starts_with("attention_units") => {
                launch.grid.blocks[1] -= CUTS;
            }
            _ => {}
        }
        launch.parameters = words.as_ptr().cast();
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(&launch) }
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError> {
        self.note("allocate_host");
        let pointer = self.inner.allocate_host(bytes)?;
        if self.slip == Slip::OneSet {
            return Ok(*self.host.lock().unwrap().entry(bytes).or_insert(pointer));
        }
        Ok(pointer)
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.release_host(pointer) }
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: HostPointer,
        bytes: usize,
    ) -> Result<(), KernelError> {
        self.note("copy_in");
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_in(to, from, bytes) }
    }

    unsafe fn copy_out(
        &self,
        to: HostPointer,
        from: DevicePointer,
        bytes: usize,
    ) -> Result<(), KernelError> {
        self.note("copy_out");
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_out(to, from, bytes) }
    }

    fn reserve_marks(&self, count: u32) -> Result<MarkIndex, KernelError> {
        self.inner.reserve_marks(count)
    }

    fn mark(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.note("mark");
        if self.slip == Slip::NoMark { Ok(()) } else { self.inner.mark(mark) }
    }

    fn wait(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.note("wait");
        if self.slip == Slip::NoWait { Ok(()) } else { self.inner.wait(mark) }
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        self.is_capturing.store(true, Relaxed);
        self.inner.begin_capture()
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        self.is_capturing.store(false, Relaxed);
        self.inner.end_capture()
    }

    unsafe fn replay(&self, graph: GraphIndex) -> Result<(), KernelError> {
        self.note("replay");
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph) }
    }

    fn release_graph(&self, graph: GraphIndex) {
        self.inner.release_graph(graph);
    }
}
