//! A driver that allocates nothing and counts what it was asked for: how much an executor takes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cuda::driver::{DevicePointer, Driver, Launch};
use crate::error::KernelError;

/// Counts bytes.
#[derive(Debug, Default)]
pub(crate) struct Measure(AtomicU64);

impl Measure {
    /// Bytes asked for so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Driver for Measure {
    fn name(&self) -> String {
        "no device".to_owned()
    }

    fn allocate(&self, bytes: usize, _what: &str) -> Result<DevicePointer, KernelError> {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
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
}

fn nothing_runs() -> KernelError {
    KernelError::Fault("a step on a device that only measures".into())
}
