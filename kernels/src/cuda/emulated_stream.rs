//! The emulated device's work: what was asked for, in order, and what was recorded as a graph.
//!
//! A real device runs it while the host goes on, at a time of its own choosing. So a late stream runs
//! nothing until it must, or until its seed says so: host memory that is used again too early, or
//! read too early, then shows. Knows what is to be done, not how.

use std::collections::VecDeque;

use crate::cuda::driver::{DevicePointer, GraphIndex, HostPointer, Launch, MarkIndex};
use crate::error::KernelError;

/// Something that was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// The host's bytes are read when it runs.
    CopyIn { to: DevicePointer, from: HostPointer, bytes: usize },
    /// The host's bytes are written when it runs.
    CopyOut { to: HostPointer, from: DevicePointer, bytes: usize },
    /// With its parameters as they were.
    Launch(Recorded),
    /// Passed when it runs.
    Mark(MarkIndex),
}

/// A launch and a copy of its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    launch: Launch,
    parameters: Vec<Line>,
}

// SAFETY: the pointer of `launch` is not followed before it is replaced by that of `parameters`.
unsafe impl Send for Recorded {}

/// As strictly aligned as any struct of parameters.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
struct Line([u8; 128]);

impl Recorded {
    /// Copies the parameters of `launch`.
    ///
    /// # Safety
    /// Its parameters are there.
    pub(crate) unsafe fn new(launch: &Launch) -> Self {
        let mut parameters = vec![Line([0; 128]); launch.parameter_bytes.div_ceil(128)];
        // SAFETY: the caller's promise.
        let bytes = unsafe {
            std::slice::from_raw_parts(launch.parameters.cast::<u8>(), launch.parameter_bytes)
        };
        for (line, bytes) in parameters.iter_mut().zip(bytes.chunks(128)) {
            line.0[..bytes.len()].copy_from_slice(bytes);
        }
        Recorded { launch: *launch, parameters }
    }

    /// The launch, to be made while `self` is there.
    pub(crate) fn launch(&self) -> Launch {
        Launch { parameters: self.parameters.as_ptr().cast(), ..self.launch }
    }
}

/// Work in the order in which it was asked for.
#[derive(Debug)]
pub(crate) struct Stream {
    /// `None`: everything runs at once.
    seed: Option<u64>,
    waiting: VecDeque<Work>,
    capture: Option<Vec<Work>>,
    graphs: Vec<Option<Vec<Work>>>,
}

/// One time in so many, a late stream is quick.
const QUICK: u64 = 8;

impl Stream {
    /// A stream that is as late as it may, but for moments drawn from `seed`.
    pub(crate) fn late(seed: u64) -> Self {
        // Odd, since nothing would ever come of zero.
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Stream { seed: Some(seed), ..Stream::at_once() }
    }

    /// A stream that runs everything at once.
    pub(crate) fn at_once() -> Self {
        Stream { seed: None, waiting: VecDeque::new(), capture: None, graphs: Vec::new() }
    }

    /// Appends `work`, or records it. Gives how much of what waits is to run now.
    pub(crate) fn ask(&mut self, work: Work) -> Result<usize, KernelError> {
        if let Some(recorded) = &mut self.capture {
            if !matches!(work, Work::Launch(_)) {
                return Err(refused("a copy or a mark"));
            }
            recorded.push(work);
            return Ok(0);
        }
        self.waiting.push_back(work);
        Ok(self.due())
    }

    fn due(&mut self) -> usize {
        let Some(state) = &mut self.seed else { return self.waiting.len() };
        // Xorshift: small, seeded, good enough.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let (is_quick, share) = (*state % QUICK == 0, *state / QUICK % 4 + 1);
        if is_quick { (self.waiting.len() * share as usize).div_ceil(4) } else { 0 }
    }

    /// All that waits.
    pub(crate) fn len(&self) -> Result<usize, KernelError> {
        match self.capture {
            None => Ok(self.waiting.len()),
            Some(_) => Err(refused("a wait, a replay or another capture")),
        }
    }

    /// What waits up to where `mark` was set last: nothing if that was passed, or was never set.
    pub(crate) fn up_to(&self, mark: MarkIndex) -> Result<usize, KernelError> {
        self.len()?;
        let is_mark = |work: &Work| matches!(work, Work::Mark(set) if *set == mark);
        Ok(self.waiting.iter().rposition(is_mark).map_or(0, |at| at + 1))
    }

    /// The next work to be run.
    pub(crate) fn pop(&mut self) -> Option<Work> {
        self.waiting.pop_front()
    }

    /// Drops what waits: a device that failed runs nothing more.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Records from here on.
    pub(crate) fn begin_capture(&mut self) -> Result<(), KernelError> {
        self.len()?;
        self.capture = Some(Vec::new());
        Ok(())
    }

    /// What was recorded.
    pub(crate) fn end_capture(&mut self) -> Result<GraphIndex, KernelError> {
        let Some(recorded) = self.capture.take() else {
            return Err(KernelError::Fault("no capture was begun".into()));
        };
        self.graphs.push(Some(recorded));
        Ok(GraphIndex(self.graphs.len() as u32 - 1))
    }

    /// Appends what `graph` recorded. Gives how much of what waits is to run now.
    pub(crate) fn replay(&mut self, graph: GraphIndex) -> Result<usize, KernelError> {
        self.len()?;
        let Some(Some(recorded)) = self.graphs.get(graph.0 as usize) else {
            return Err(KernelError::Fault("no such graph".into()));
        };
        self.waiting.extend(recorded.iter().cloned());
        Ok(self.due())
    }

    /// Forgets `graph`.
    pub(crate) fn release(&mut self, graph: GraphIndex) {
        if let Some(graph) = self.graphs.get_mut(graph.0 as usize) {
            *graph = None;
        }
    }
}

fn refused(what: &str) -> KernelError {
    KernelError::Fault(format!("{what} during a capture"))
}
