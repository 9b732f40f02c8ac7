//! What the host tells the device for a step: arrays at places that are planned once.
//!
//! The host fills page-locked memory, of which there is a set for each step in flight, and copies in
//! the order of the stream bring it over: a step that runs still has its arrays when the next one's
//! are written. Places on the device never move, so that a captured graph finds them again.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::cuda::driver::{DeviceBuffer, DevicePointer, Driver, MarkIndex};
use crate::cuda::host_buffer::HostBuffer;
use crate::cuda::plain::Plain;
use crate::error::KernelError;

/// Sets of host memory: steps that may be in flight.
pub(crate) const SETS: usize = 2;

/// A place for up to `len` values.
#[derive(Debug)]
pub(crate) struct Place<T> {
    offset: usize,
    is_aside: bool,
    len: usize,
    values: PhantomData<T>,
}

/// Places one after another, each aligned for any vector load.
#[derive(Debug, Default)]
pub(crate) struct StagingPlan {
    bytes: usize,
    /// Bytes of the places that lie behind all others.
    aside_bytes: usize,
    num_places: usize,
}

const ALIGNMENT: usize = 16;

/// Bytes that nobody wrote and that are copied nevertheless: a copy more would take longer.
const GAP_MAX: usize = 32 << 10;

impl StagingPlan {
    /// A place for up to `len` values, among those that every step fills.
    pub(crate) fn place<T: Plain>(&mut self, len: usize) -> Place<T> {
        self.num_places += 1;
        let offset = extend::<T>(&mut self.bytes, len);
        Place { offset, is_aside: false, len, values: PhantomData }
    }

    /// A place for up to `len` values that is large, or seldom filled.
    pub(crate) fn place_aside<T: Plain>(&mut self, len: usize) -> Place<T> {
        self.num_places += 1;
        let offset = extend::<T>(&mut self.aside_bytes, len);
        Place { offset, is_aside: true, len, values: PhantomData }
    }
}

/// Appends `len` values to `bytes`; gives where they begin.
fn extend<T>(bytes: &mut usize, len: usize) -> usize {
    let offset = *bytes;
    *bytes = (offset + len * size_of::<T>()).next_multiple_of(ALIGNMENT);
    offset
}

/// The arrays of steps on both sides.
#[derive(Debug)]
pub(crate) struct Staging {
    driver: Arc<dyn Driver>,
    sets: [Set; SETS],
    /// One for each set, and one behind what was sent, where a set is filled anew within a step.
    marks: MarkIndex,
    /// The set that is filled.
    current: usize,
    device: DeviceBuffer,
    /// Where places that lie aside begin.
    aside: usize,
    /// Bytes that were written and not yet sent.
    written: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Set {
    host: HostBuffer,
    /// Whether a copy may still have to read it.
    is_sent: bool,
}

impl Staging {
    /// Room for all places of `plan`.
    pub(crate) fn new(driver: &Arc<dyn Driver>, plan: &StagingPlan) -> Result<Self, KernelError> {
        let bytes = plan.bytes + plan.aside_bytes;
        let set = || {
            let host = HostBuffer::new(driver, bytes)?;
            Ok::<_, KernelError>(Set { host, is_sent: false })
        };
        Ok(Staging {
            driver: Arc::clone(driver),
            sets: [set()?, set()?],
            marks: driver.reserve_marks(SETS as u32 + 1)?,
            current: 0,
            device: DeviceBuffer::new(driver, bytes, "a step's arrays")?,
            aside: plan.bytes,
            written: Vec::with_capacity(plan.num_places),
        })
    }

    /// Where a place is on the device.
    pub(crate) fn pointer<T>(&self, place: &Place<T>) -> DevicePointer {
        self.device.pointer().offset(self.start(place))
    }

    fn start<T>(&self, place: &Place<T>) -> usize {
        place.offset + if place.is_aside { self.aside } else { 0 }
    }

    /// What is to be waited for before set number `set` is free.
    pub(crate) fn mark(&self, set: usize) -> MarkIndex {
        self.marks.next(set)
    }

    /// Turns to the next set, for the next step. Gives its number, under which it is to be freed.
    pub(crate) fn begin(&mut self) -> Result<usize, KernelError> {
        self.current = (self.current + 1) % SETS;
        self.written.clear();
        self.check_unsent()?;
        Ok(self.current)
    }

    /// The device has passed a mark behind all that set number `set` sent.
    pub(crate) fn free(&mut self, set: usize) {
        self.sets[set].is_sent = false;
    }

    fn check_unsent(&self) -> Result<(), KernelError> {
        if self.sets[self.current].is_sent {
            return Err(KernelError::Fault("arrays were written that a step still reads".into()));
        }
        Ok(())
    }

    /// Writes `values` at the start of a place. An array that is too long for it is a fault of ours.
    pub(crate) fn write<T: Plain>(
        &mut self,
        place: &Place<T>,
        values: &[T],
    ) -> Result<(), KernelError> {
        self.put(place, 0, values)
    }

    /// The same, and then `padding` up to `len` values.
    pub(crate) fn write_padded<T: Plain>(
        &mut self,
        place: &Place<T>,
        values: &[T],
        (padding, len): (T, usize),
    ) -> Result<(), KernelError> {
        self.put(place, 0, values)?;
        (values.len()..len).try_for_each(|at| self.put(place, at, &[padding]))
    }

    fn put<T: Plain>(
        &mut self,
        place: &Place<T>,
        at: usize,
        values: &[T],
    ) -> Result<(), KernelError> {
        let (end, room) = (at + values.len(), place.len);
        if end > room {
            return Err(KernelError::Fault(format!("{end} values in a place for {room}")));
        }
        self.check_unsent()?;
        let start = self.start(place) + at * size_of::<T>();
        let bytes = start..start + size_of_val(values);
        // SAFETY: no copy has to read this set: its last one was waited for.
        unsafe { self.sets[self.current].host.write(start, values) };
        match self.written.last_mut() {
            _ if bytes.is_empty() => {}
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => self.written.push(bytes),
        }
        Ok(())
    }

    /// Brings what was written to the device, in the order of the stream.
    pub(crate) fn send(&mut self) -> Result<(), KernelError> {
        self.check_unsent()?;
        let set = &mut self.sets[self.current];
        set.is_sent = true;
        self.written.sort_unstable_by_key(|bytes| bytes.start);
        for neighbours in self.written.chunk_by(|a, b| b.start <= a.end + GAP_MAX) {
            let (Some(first), Some(last)) = (neighbours.first(), neighbours.last()) else { break };
            let to = self.device.pointer().offset(first.start);
            let from = set.host.pointer(first.start);
            // SAFETY: within both buffers; the set is not written until it is free.
            unsafe { self.driver.copy_in(to, from, last.end - first.start) }?;
        }
        self.written.clear();
        Ok(())
    }

    /// Waits until what was sent has arrived, so that the same set can be filled once more: for steps
    /// that bring more than their places hold.
    pub(crate) fn await_sent(&mut self) -> Result<(), KernelError> {
        let sent = self.marks.next(SETS);
        self.driver.mark(sent)?;
        self.driver.wait(sent)?;
        self.free(self.current);
        Ok(())
    }
}
