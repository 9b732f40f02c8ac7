//! What the host tells the device for a step: arrays at places that are planned once.
//!
//! The host fills its copy, and one transfer brings all of it over. Places never move, so that a
//! captured graph finds them again.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver};
use crate::cuda::plain::{Plain, bytes_of};
use crate::error::KernelError;

/// A place for up to `len` values.
#[derive(Debug)]
pub(crate) struct Place<T> {
    offset: usize,
    len: usize,
    values: PhantomData<T>,
}

/// Places one after another, each aligned for any vector load.
#[derive(Debug, Default)]
pub(crate) struct StagingPlan {
    bytes: usize,
}

const ALIGNMENT: usize = 16;

impl StagingPlan {
    /// A place for up to `len` values.
    pub(crate) fn place<T: Plain>(&mut self, len: usize) -> Place<T> {
        let offset = self.bytes;
        self.bytes = (offset + len * size_of::<T>()).next_multiple_of(ALIGNMENT);
        Place { offset, len, values: PhantomData }
    }
}

/// The arrays of a step on both sides.
#[derive(Debug)]
pub(crate) struct Staging {
    host: Vec<u8>,
    device: DeviceBuffer,
    /// Bytes that this step filled, up to the end of the last array.
    filled: usize,
}

impl Staging {
    /// Room for all places of `plan`.
    pub(crate) fn new(driver: &Arc<dyn Driver>, plan: &StagingPlan) -> Result<Self, KernelError> {
        let device = DeviceBuffer::new(driver, plan.bytes, "a step's arrays")?;
        Ok(Staging { host: vec![0; plan.bytes], device, filled: 0 })
    }

    /// Where a place is on the device.
    pub(crate) fn pointer<T>(&self, place: &Place<T>) -> DevicePointer {
        self.device.pointer().offset(place.offset)
    }

    /// Writes `values` at the start of a place. An array that is too long for it is a fault of ours.
    pub(crate) fn write<T: Plain>(
        &mut self,
        place: &Place<T>,
        values: &[T],
    ) -> Result<(), KernelError> {
        if values.len() > place.len {
            let (len, room) = (values.len(), place.len);
            return Err(KernelError::Fault(format!("{len} values in a place for {room}")));
        }
        let bytes = bytes_of(values);
        let end = place.offset + bytes.len();
        self.host[place.offset..end].copy_from_slice(bytes);
        self.filled = self.filled.max(end);
        Ok(())
    }

    /// Brings what was written to the device.
    pub(crate) fn upload(&mut self) -> Result<(), KernelError> {
        self.device.upload(0, &self.host[..self.filled])?;
        self.filled = 0;
        Ok(())
    }
}
