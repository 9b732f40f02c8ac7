//! The host's emulation of a GPU: compiles the kernels' own sources with the C++ compiler and runs
//! them thread by thread. For tests; far too slow to serve.
//!
//! Memory lies between red zones that are looked at after every launch, a launch's threads and blocks
//! run in an order drawn from a seed, and what is asked for runs as late as it may.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cuda::driver::{
    DevicePointer, Driver, Fill, GraphIndex, HostPointer, Launch, MarkIndex, UPLOAD_MAX,
};
use crate::cuda::emulated_compiler::compile;
use crate::cuda::emulated_map;
use crate::cuda::emulated_stream::{Recorded, Stream, Work};
use crate::cuda::source::Source;
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::error::KernelError;

/// Bytes before and after each allocation that nobody may write; NaN to whoever reads them.
const RED_ZONE: usize = 4096;
const RED: u8 = 0xff;
const ALIGNMENT: usize = 256;
/// Hopper's; as much as emulation/emulate.h has.
const SHARED_BYTES_MAX: usize = 232_448;
/// What a red zone looks like.
static ZONE: [u8; RED_ZONE + ALIGNMENT] = [RED; RED_ZONE + ALIGNMENT];

/// Kernels of a source with a fault that are compiled alone.
const ALONE_MAX: usize = 2;

/// A library has one block, whoever opened it, and signals are the whole process's.
static RUNNING: Mutex<()> = Mutex::new(());

/// A change to a source before it is compiled: a planted fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Text that occurs in the source, or else in a header that it includes.
    pub(crate) from: &'static str,
    /// What stands there instead, at the first occurrence.
    pub(crate) to: &'static str,
}

/// Runs kernels on the host.
#[derive(Debug)]
pub(crate) struct Emulated {
    folder: PathBuf,
    fault: Option<Fault>,
    /// Where it is planted; `None`: wherever anything is compiled.
    faulty: Option<&'static str>,
    seed: AtomicU64,
    /// That a block may ask for.
    shared_bytes_max: usize,
    num_marks: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By the source, and by the kernel where a library has that one alone.
    libraries: HashMap<(&'static str, Option<&'static str>), Library>,
    allocations: HashMap<u64, Allocation>,
    host_allocations: HashMap<u64, Allocation>,
    stream: Stream,
    /// Why the device runs nothing any more.
    failed: Option<String>,
}

type EmulateLaunch = unsafe extern "C" fn(
    *const c_char,
    *const c_void,
    usize,
    *const u32,
    u32,
    usize,
    u64,
    *mut c_char,
    usize,
) -> c_int;

/// A compiled source. Never unloaded: the process is a test.
#[derive(Clone, Copy, Debug)]
struct Library {
    launch: EmulateLaunch,
}

/// Memory with its red zones.
#[derive(Debug)]
struct Allocation {
    memory: Vec<u8>,
    /// Where the first byte lies in `memory`.
    start: usize,
    bytes: usize,
}

impl Emulated {
    /// Compiles into `folder`, on first use. `seed` orders threads and blocks, and says what runs
    /// when.
    pub(crate) fn new(folder: &Path, seed: u64) -> Self {
        Self::with_fault(folder, seed, None)
    }

    /// The same with a planted fault.
    pub(crate) fn with_fault(folder: &Path, seed: u64, fault: Option<Fault>) -> Self {
        let state = Mutex::new(State {
            libraries: HashMap::new(),
            allocations: HashMap::new(),
            host_allocations: HashMap::new(),
            stream: Stream::late(seed),
            failed: None,
        });
        let (seed, num_marks) = (AtomicU64::new(seed), AtomicU32::new(0));
        let (folder, faulty, shared_bytes_max) = (folder.to_owned(), None, SHARED_BYTES_MAX);
        Emulated { folder, fault, faulty, seed, shared_bytes_max, num_marks, state }
    }

    /// Plants the fault in no other source than `name`.
    #[cfg(any(test, feature = "suite"))]
    pub(crate) fn only_in(self, name: &'static str) -> Self {
        Emulated { faulty: Some(name), ..self }
    }

    /// As a card whose blocks may ask for so many bytes of shared memory.
    #[cfg(test)]
    pub(crate) fn limited_to(self, shared_bytes_max: usize) -> Self {
        Emulated { shared_bytes_max, ..self }
    }

    /// Runs everything at once: a launch returns its own fault.
    #[cfg(any(test, feature = "suite"))]
    pub(crate) fn at_once(self) -> Self {
        self.state().stream = Stream::at_once();
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The library with this kernel. A source with a fault mostly costs the compiler's time, and most
    /// tests launch one or two of its kernels: those are compiled alone, and all of them for a third.
    fn library(
        &self,
        state: &mut State,
        source: &'static Source,
        kernel: &'static str,
    ) -> Result<Library, KernelError> {
        let libraries = &mut state.libraries;
        let known = [None, Some(kernel)].map(|part| libraries.get(&(source.name, part)));
        if let Some(library) = known.into_iter().flatten().next() {
            return Ok(*library);
        }
        let fault = self.fault.filter(|_| self.faulty.is_none_or(|name| name == source.name));
        let num_alone = libraries.keys().filter(|(name, _)| *name == source.name).count();
        let only = Some(kernel).filter(|_| fault.is_some() && num_alone < ALONE_MAX);
        let library = Library::open(&compile(&self.folder, source, fault, only)?)?;
        libraries.insert((source.name, only), library);
        Ok(library)
    }
}

impl Driver for Emulated {
    fn name(&self) -> String {
        "emulated GPU".to_owned()
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<DevicePointer, KernelError> {
        if bytes == 0 {
            return Err(KernelError::Fault(format!("no bytes for {what}")));
        }
        let allocation = Allocation::new(bytes);
        let address = allocation.address();
        self.state().allocations.insert(address, allocation);
        Ok(DevicePointer(address))
    }

    unsafe fn release(&self, pointer: DevicePointer) {
        let mut state = self.state();
        // What fails is told to whoever asks next.
        let _ = self.run_all(&mut state);
        state.allocations.remove(&pointer.0);
    }

    unsafe fn upload_with(
        &self,
        to: DevicePointer,
        bytes: usize,
        fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        assert!(bytes <= UPLOAD_MAX, "an upload of {bytes} bytes");
        // What nobody writes shows.
        let mut place = vec![RED; bytes];
        fill(&mut place)?;
        self.run_all(&mut self.state())?;
        // SAFETY: host memory by the caller's promise, and nothing runs.
        unsafe { std::ptr::copy_nonoverlapping(place.as_ptr(), to.0 as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn download(&self, from: DevicePointer, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.run_all(&mut self.state())?;
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        self.ask(Work::Launch(unsafe { Recorded::new(launch) }))
    }

    fn capability(&self) -> (u32, u32) {
        (9, 0)
    }

    fn shared_bytes_max(&self) -> usize {
        self.shared_bytes_max
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
        spec.check()?;
        let (first, end) = (spec.address.0, spec.address.0 + spec.extent() as u64);
        let holds = |(&start, allocation): (&u64, &Allocation)| {
            start <= first && end <= start + allocation.bytes as u64
        };
        if self.state().allocations.iter().any(holds) {
            return Ok(emulated_map::encode(spec));
        }
        Err(KernelError::Fault(format!("a tensor map beyond a buffer: {spec:?}")))
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError> {
        if bytes == 0 {
            return Err(KernelError::Fault("no bytes of page-locked memory".into()));
        }
        let allocation = Allocation::new(bytes);
        let address = allocation.address();
        self.state().host_allocations.insert(address, allocation);
        Ok(HostPointer(address as *mut u8))
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        let mut state = self.state();
        let _ = self.run_all(&mut state);
        state.host_allocations.remove(&(pointer.0 as u64));
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: HostPointer,
        bytes: usize,
    ) -> Result<(), KernelError> {
        self.ask(Work::CopyIn { to, from, bytes })
    }

    unsafe fn copy_out(
        &self,
        to: HostPointer,
        from: DevicePointer,
        bytes: usize,
    ) -> Result<(), KernelError> {
        self.ask(Work::CopyOut { to, from, bytes })
    }

    fn reserve_marks(&self, count: u32) -> Result<MarkIndex, KernelError> {
        Ok(MarkIndex(self.num_marks.fetch_add(count, Ordering::Relaxed)))
    }

    fn mark(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.ask(Work::Mark(mark))
    }

    fn wait(&self, mark: MarkIndex) -> Result<(), KernelError> {
        let mut state = self.state();
        let due = state.stream.up_to(mark)?;
        self.run(&mut state, due)
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        self.state().stream.begin_capture()
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        self.state().stream.end_capture()
    }

    unsafe fn replay(&self, graph: GraphIndex) -> Result<(), KernelError> {
        let mut state = self.state();
        let due = state.stream.replay(graph)?;
        self.run(&mut state, due)
    }

    fn release_graph(&self, graph: GraphIndex) {
        self.state().stream.release(graph);
    }
}

impl Emulated {
    fn ask(&self, work: Work) -> Result<(), KernelError> {
        let mut state = self.state();
        let due = state.stream.ask(work)?;
        self.run(&mut state, due)
    }

    fn run_all(&self, state: &mut State) -> Result<(), KernelError> {
        let due = state.stream.len()?;
        self.run(state, due)
    }

    /// Runs the next `due` of what waits. The first failure is the last thing that the device does.
    fn run(&self, state: &mut State, due: usize) -> Result<(), KernelError> {
        if let Some(reason) = &state.failed {
            return Err(KernelError::Fault(reason.clone()));
        }
        for _ in 0..due {
            let Some(work) = state.stream.pop() else { break };
            self.perform(state, &work).inspect_err(|error| {
                state.failed = Some(match error {
                    KernelError::Fault(reason) => reason.clone(),
                    other => other.to_string(),
                });
                state.stream.clear();
            })?;
        }
        Ok(())
    }

    fn perform(&self, state: &mut State, work: &Work) -> Result<(), KernelError> {
        match work {
            // SAFETY: memory that is there, by the promise of whoever asked.
            Work::CopyIn { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from.0.cast_const(), to.0 as *mut u8, *bytes);
            },
            // SAFETY: as above.
            Work::CopyOut { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0, *bytes);
            },
            Work::Launch(recorded) => self.perform_launch(state, &recorded.launch())?,
            Work::Mark(_) => {}
        }
        state.check_red_zones(work)
    }

    fn perform_launch(&self, state: &mut State, launch: &Launch) -> Result<(), KernelError> {
        let shared_bytes = launch.grid.shared_bytes;
        if shared_bytes > self.shared_bytes_max {
            let reason = format!("{} asks for {shared_bytes} bytes of shared memory", launch.name);
            return Err(KernelError::Fault(reason));
        }
        let library = self.library(state, launch.source, launch.name)?;
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the promise of whoever asked for it.
        unsafe { library.launch(launch, seed) }
    }
}

impl State {
    fn check_red_zones(&self, work: &Work) -> Result<(), KernelError> {
        let mut all = self.allocations.values().chain(self.host_allocations.values());
        let Some(spoilt) = all.find(|allocation| !allocation.is_whole()) else { return Ok(()) };
        let who = match work {
            Work::Launch(recorded) => recorded.launch().name,
            _ => "a copy",
        };
        let bytes = spoilt.bytes;
        Err(KernelError::Fault(format!("{who} wrote beyond a buffer of {bytes} bytes")))
    }
}

impl Allocation {
    fn new(bytes: usize) -> Self {
        let mut memory = vec![RED; bytes + 2 * RED_ZONE + ALIGNMENT];
        let start = RED_ZONE + (memory.as_ptr() as usize + RED_ZONE).wrapping_neg() % ALIGNMENT;
        memory[start..start + bytes].fill(0);
        Allocation { memory, start, bytes }
    }

    fn address(&self) -> u64 {
        self.memory.as_ptr() as u64 + self.start as u64
    }

    /// Whether the red zones are as they were.
    fn is_whole(&self) -> bool {
        let (before, rest) = self.memory.split_at(self.start);
        let after = &rest[self.bytes..];
        before == &ZONE[..before.len()] && after == &ZONE[..after.len()]
    }
}

impl Library {
    fn open(path: &Path) -> Result<Self, KernelError> {
        let refused = |what: &str| KernelError::Unsupported(format!("{what} {}", path.display()));
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| refused("cannot name"))?;
        // SAFETY: a library that we compiled ourselves; it runs nothing but constructors of tables.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(refused("cannot load"));
        }
        // SAFETY: an open library.
        let symbol = unsafe { libc::dlsym(handle, c"emulate_launch".as_ptr()) };
        if symbol.is_null() {
            return Err(refused("no emulate_launch in"));
        }
        // SAFETY: emulate.h declares it with this type.
        Ok(Library { launch: unsafe { std::mem::transmute::<*mut c_void, EmulateLaunch>(symbol) } })
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn launch(&self, launch: &Launch, seed: u64) -> Result<(), KernelError> {
        let name = CString::new(launch.name)
            .map_err(|_| KernelError::Unsupported("a kernel's name".into()))?;
        let mut message = [0; 512];
        // SAFETY: the arguments' sizes go with them; the rest is the caller's promise.
        let failed = unsafe {
            (self.launch)(
                name.as_ptr(),
                launch.parameters,
                launch.parameter_bytes,
                launch.grid.blocks.as_ptr(),
                launch.threads,
                launch.grid.shared_bytes,
                seed,
                message.as_mut_ptr(),
                message.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: snprintf ended it with a zero.
        let message = unsafe { CStr::from_ptr(message.as_ptr()) };
        Err(KernelError::Fault(message.to_string_lossy().into_owned()))
    }
}
