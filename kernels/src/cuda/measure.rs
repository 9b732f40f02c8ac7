//! A driver that allocates nothing and counts what it was asked for: how much an executor takes, and
//! its graphs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::cuda::driver::{
    DevicePointer, Driver, Fill, GraphIndex, HostPointer, Launch, MarkIndex,
};
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::device::Scratch;
use crate::error::KernelError;

/// What a driver keeps on the device for a launch of a graph. Nothing tells it: one of 2021 was seen to
/// take as much, and newer ones take less.
const LAUNCH_BYTES: u64 = 64 << 10;

/// Counts bytes, in place of another driver.
#[derive(Debug)]
pub(crate) struct Measure {
    bytes: AtomicU64,
    page_locked_bytes: AtomicU64,
    is_capturing: AtomicBool,
    shared_bytes_max: usize,
}

impl Measure {
    /// Chooses kernels as `driver` does, whose own memory counts.
    pub(crate) fn of(driver: &dyn Driver) -> Self {
        let (bytes, is_capturing) = Default::default();
        let page_locked_bytes = AtomicU64::new(driver.page_locked_bytes() as u64);
        let shared_bytes_max = driver.shared_bytes_max();
        Measure { bytes, page_locked_bytes, is_capturing, shared_bytes_max }
    }

    /// What was asked for so far.
    pub(crate) fn scratch(&self) -> Scratch {
        Scratch {
            bytes: self.bytes.load(Ordering::Relaxed),
            page_locked_bytes: self.page_locked_bytes.load(Ordering::Relaxed),
        }
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
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
        self.add(bytes as u64);
        Ok(DevicePointer::NULL)
    }

    unsafe fn release(&self, _pointer: DevicePointer) {}

    unsafe fn upload_with(
        &self,
        _to: DevicePointer,
        _bytes: usize,
        _fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    unsafe fn download(&self, _from: DevicePointer, _bytes: &mut [u8]) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    unsafe fn launch(&self, _launch: &Launch) -> Result<(), KernelError> {
        if !self.is_capturing.load(Ordering::Relaxed) {
            return Err(nothing_runs());
        }
        self.add(LAUNCH_BYTES);
        Ok(())
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
        spec.check()?;
        Ok(TensorMap([0; 128]))
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError> {
        self.page_locked_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
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

    fn reserve_marks(&self, _count: u32) -> Result<MarkIndex, KernelError> {
        Ok(MarkIndex(0))
    }

    fn mark(&self, _mark: MarkIndex) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn wait(&self, _mark: MarkIndex) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        self.is_capturing.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        self.is_capturing.store(false, Ordering::Relaxed);
        Ok(GraphIndex(0))
    }

    unsafe fn replay(&self, _graph: GraphIndex) -> Result<(), KernelError> {
        Err(nothing_runs())
    }

    fn release_graph(&self, _graph: GraphIndex) {}
}

fn nothing_runs() -> KernelError {
    KernelError::Fault("a step on a device that only measures".into())
}
