//! A driver that allocates nothing and counts what it was asked for: how much an executor takes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cuda::driver::{DevicePointer, Driver, GraphIndex, HostPointer, Launch, MarkIndex};
use crate::error::KernelError;

/// Counts bytes, in place of another driver.
#[derive(Debug)]
pub(crate) struct Measure {
    bytes: AtomicU64,
    shared_bytes_max: usize,
}

impl Measure {
    /// Chooses kernels as `driver` does.
    pub(crate) fn of(driver: &dyn Driver) -> Self {
        Measure { bytes: AtomicU64::new(0), shared_bytes_max: driver.shared_bytes_max() }
    }

    /// Bytes asked for so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Driver for Measure {
    fn name(&self) -> String {
        "no device".to_owned()
    }

    fn shared_bytes_max(&self) -> usize {
        self.shared_bytes_max
    }

    fn allocate(&self, bytes: usize, _what: &str) -> Result<DevicePointer, KernelError> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(DevicePointer::NULL)
    }

    unsafe fn release(&self, _pointer: DevicePointer) {}

    unsafe fn upload(&self, _to: DevicePointer, _bytes: &[u8]) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    unsafe fn download(&self, _from: DevicePointer, _bytes: &mut [u8]) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    unsafe fn launch(&self, _launch: &Launch) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn allocate_host(&self, _bytes: usize) -> Result<HostPointer, KernelError> {
        Ok(HostPointer(std::ptr::null_mut()))
    }

    unsafe fn release_host(&self, _pointer: HostPointer) {}

    unsafe fn copy_in(
        &self,
        _to: DevicePointer,
        _from: HostPointer,
        _bytes: usize,
    ) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    unsafe fn copy_out(
        &self,
        _to: HostPointer,
        _from: DevicePointer,
        _bytes: usize,
    ) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn mark(&self, _mark: MarkIndex) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn wait(&self, _mark: MarkIndex) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        Err(nothing_runs())
    }

    unsafe fn replay(&self, _graph: GraphIndex) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn release_graph(&self, _graph: GraphIndex) {}
}

fn nothing_runs() -> KernelError {
    KernelError::Fault("a step on a device that only measures".into())
}
