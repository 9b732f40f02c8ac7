//! What the device needs from whoever runs kernels: NVIDIA's driver, or the host's emulation.
//!
//! Memory, copies and launches in the order of one stream. Knows nothing of ops.

use std::ffi::c_void;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::cuda::product_library::ProductLibrary;
use crate::cuda::source::Source;
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::device::DeviceMemory;
use crate::error::KernelError;

/// An address in device memory. Host code never follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct DevicePointer(pub(crate) u64);

impl MarkIndex {
    /// The place `count` further on.
    pub(crate) fn next(self, count: usize) -> Self {
        MarkIndex(self.0 + count as u32)
    }
}

impl DevicePointer {
    /// Kernels take it for "there is none".
    pub(crate) const NULL: Self = DevicePointer(0);

    /// The address `bytes` further on.
    pub(crate) fn offset(self, bytes: usize) -> Self {
        DevicePointer(self.0 + bytes as u64)
    }
}

/// An address in page-locked host memory, see [`Driver::allocate_host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct HostPointer(pub(crate) *mut u8);

// SAFETY: an address; whoever follows it says why nobody else does at that time.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

/// A place for a mark, see [`Driver::reserve_marks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MarkIndex(pub(crate) u32);

/// A recorded graph of one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GraphIndex(pub(crate) u32);

/// A kernel: where it is and what it takes.
#[derive(Debug)]
pub(crate) struct Kernel<P> {
    /// The file.
    pub(crate) source: &'static Source,
    /// The function.
    pub(crate) name: &'static str,
    /// Threads of a block.
    pub(crate) threads: u32,
    parameters: PhantomData<fn(P)>,
}

impl<P> Kernel<P> {
    /// The kernel `name` of `source`, whose struct of parameters `P` mirrors.
    pub(crate) const fn new(source: &'static Source, name: &'static str, threads: u32) -> Self {
        Kernel { source, name, threads, parameters: PhantomData }
    }
}

/// How many blocks, and the shared memory of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks.
    pub(crate) blocks: [u32; 3],
    /// Bytes a block.
    pub(crate) shared_bytes: usize,
}

/// A launch without types.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// The file.
    pub(crate) source: &'static Source,
    /// The function.
    pub(crate) name: &'static str,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// How many blocks.
    pub(crate) grid: Grid,
    /// The struct of parameters; copied by the launch.
    pub(crate) parameters: *const c_void,
    /// Its size.
    pub(crate) parameter_bytes: usize,
}

/// Writes the bytes of an upload. Its refusal ends the upload, and is returned.
pub(crate) type Fill<'a> = dyn FnMut(&mut [u8]) -> Result<(), KernelError> + 'a;

/// Bytes of an upload at most: long enough that what a copy costs by itself does not count, and few enough
/// to be kept twice.
pub(crate) const UPLOAD_MAX: usize = 16 << 20;

/// Runs kernels. All calls act in the order in which they are made: that of one stream. A fault of
/// what runs behind a call's back is returned by a later call, and by all that follow it.
pub(crate) trait Driver: Debug + Send + Sync {
    /// The device, for people.
    fn name(&self) -> String;

    /// Compute capability, major and minor: what kernels may ask of the device. The least that all of
    /// them need, unless a device says otherwise.
    fn capability(&self) -> (u32, u32) {
        (8, 0)
    }

    /// Shared memory that a block may ask for, in bytes. Hopper's, unless a card says otherwise.
    fn shared_bytes_max(&self) -> usize {
        232_448
    }

    /// The device's own memory, now. `None`: the host's.
    fn memory(&self) -> Result<Option<DeviceMemory>, KernelError> {
        Ok(None)
    }

    /// Zeroed memory, aligned to 256 bytes. A device refuses 0 bytes.
    fn allocate(&self, bytes: usize, what: &str) -> Result<DevicePointer, KernelError>;

    /// Gives memory back, once what was asked for before has run.
    ///
    /// # Safety
    /// `pointer` came from `allocate` and nobody uses it any more, nor a graph that will be replayed.
    unsafe fn release(&self, pointer: DevicePointer);

    /// Copies to the device, in the order of the stream, the `bytes` bytes that `fill` writes, up to
    /// [`UPLOAD_MAX`]; for loading and for tests. What `fill` finds there is anything, and all of it is
    /// copied. It may write on many threads, but none of them may ask for an upload.
    ///
    /// # Safety
    /// The memory from `to` on is allocated and long enough.
    unsafe fn upload_with(
        &self,
        to: DevicePointer,
        bytes: usize,
        fill: &mut Fill<'_>,
    ) -> Result<(), KernelError>;

    /// Copies `bytes` to the device. They were read when it returns.
    ///
    /// # Safety
    /// As for [`Self::upload_with`].
    unsafe fn upload(&self, to: DevicePointer, bytes: &[u8]) -> Result<(), KernelError> {
        for (index, chunk) in bytes.chunks(UPLOAD_MAX).enumerate() {
            let mut fill = |place: &mut [u8]| {
                place.copy_from_slice(chunk);
                Ok(())
            };
            // SAFETY: a part of the memory that the caller promises.
            unsafe { self.upload_with(to.offset(index * UPLOAD_MAX), chunk.len(), &mut fill) }?;
        }
        Ok(())
    }

    /// Bytes of the host's memory that the driver keeps page-locked for itself.
    fn page_locked_bytes(&self) -> usize {
        0
    }

    /// Waits for all that was asked for, then copies from the device: for tests.
    ///
    /// # Safety
    /// The memory from `from` on is allocated and long enough.
    #[allow(dead_code, reason = "steps fetch their results behind their backs")]
    unsafe fn download(&self, from: DevicePointer, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Starts a kernel.
    ///
    /// # Safety
    /// The parameters are the kernel's own struct, and all that it reads and writes through them is
    /// allocated and large enough.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError>;

    /// A tensor as the copy engine of compute capability 9.0 knows it, for kernels that run while its
    /// memory is allocated.
    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
        Err(KernelError::Unsupported(format!("{} has no tensor maps: {spec:?}", self.name())))
    }

    /// A library of the device's maker that multiplies, if there is one.
    fn product_library(&self) -> Option<&dyn ProductLibrary> {
        None
    }

    /// Page-locked host memory, zeroed, that copies in the order of the stream may use. Aligned to
    /// 256 bytes. A device refuses 0 bytes.
    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError>;

    /// Gives memory back, once what was asked for before has run.
    ///
    /// # Safety
    /// `pointer` came from `allocate_host` and nobody uses it any more.
    unsafe fn release_host(&self, pointer: HostPointer);

    /// Copies to the device in the order of the stream; returns at once.
    ///
    /// # Safety
    /// Both memories are allocated and long enough, and the host's bytes stay as they are until a
    /// mark behind the copy was waited for.
    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: HostPointer,
        bytes: usize,
    ) -> Result<(), KernelError>;

    /// Copies from the device in the order of the stream; returns at once.
    ///
    /// # Safety
    /// Both memories are allocated and long enough, and nobody touches the host's bytes until a mark
    /// behind the copy was waited for.
    unsafe fn copy_out(
        &self,
        to: HostPointer,
        from: DevicePointer,
        bytes: usize,
    ) -> Result<(), KernelError>;

    /// `count` places for marks that nobody else has, one after another; gives the first. They are the
    /// driver's as long as it lives.
    fn reserve_marks(&self, count: u32) -> Result<MarkIndex, KernelError>;

    /// Sets `mark` behind all that was asked for so far.
    fn mark(&self, mark: MarkIndex) -> Result<(), KernelError>;

    /// Returns when the device has passed the place where `mark` was set last.
    fn wait(&self, mark: MarkIndex) -> Result<(), KernelError>;

    /// From here to `end_capture`, launches are recorded instead of run, with the parameters they
    /// have. Nothing else may be asked for meanwhile, by nobody. Kernels may be met for the first
    /// time: whoever must load them does it then. A library's may not.
    fn begin_capture(&self) -> Result<(), KernelError>;

    /// The launches since `begin_capture`, to be replayed.
    fn end_capture(&self) -> Result<GraphIndex, KernelError>;

    /// Starts all launches of `graph`, in their order.
    ///
    /// # Safety
    /// What was promised of each launch holds still.
    unsafe fn replay(&self, graph: GraphIndex) -> Result<(), KernelError>;

    /// Forgets `graph`, once what was asked for before has run.
    fn release_graph(&self, graph: GraphIndex);
}

/// Starts `kernel`.
///
/// # Safety
/// All that the kernel reads and writes through `parameters` is allocated and large enough.
pub(crate) unsafe fn launch<P>(
    driver: &dyn Driver,
    kernel: &Kernel<P>,
    grid: Grid,
    parameters: &P,
) -> Result<(), KernelError> {
    if grid.blocks.contains(&0) {
        return Ok(());
    }
    let launch = Launch {
        source: kernel.source,
        name: kernel.name,
        threads: kernel.threads,
        grid,
        parameters: std::ptr::from_ref(parameters).cast(),
        parameter_bytes: size_of::<P>(),
    };
    // SAFETY: the kernel's type names its struct; the rest is the caller's promise.
    unsafe { driver.launch(&launch) }
}

/// Device memory that is given back when dropped.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    driver: Arc<dyn Driver>,
    pointer: DevicePointer,
    bytes: usize,
}

impl DeviceBuffer {
    /// Zeroed memory.
    pub(crate) fn new(
        driver: &Arc<dyn Driver>,
        bytes: usize,
        what: &str,
    ) -> Result<Self, KernelError> {
        let pointer =
            if bytes == 0 { DevicePointer::NULL } else { driver.allocate(bytes, what)? };
        Ok(DeviceBuffer { driver: Arc::clone(driver), pointer, bytes })
    }

    /// Its first byte.
    pub(crate) fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// Copies `bytes` to `offset`. Panics if they do not fit: a length that the caller planned.
    pub(crate) fn upload(&self, offset: usize, bytes: &[u8]) -> Result<(), KernelError> {
        assert!(offset + bytes.len() <= self.bytes, "an upload beyond its buffer");
        // SAFETY: within the buffer.
        unsafe { self.driver.upload(self.pointer.offset(offset), bytes) }
    }

    /// Copies what `fill` writes, `bytes` bytes, to `offset`; see [`Driver::upload_with`]. Panics if they
    /// do not fit: a length that the caller planned.
    pub(crate) fn upload_with(
        &self,
        offset: usize,
        bytes: usize,
        fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        assert!(offset + bytes <= self.bytes, "an upload beyond its buffer");
        // SAFETY: within the buffer.
        unsafe { self.driver.upload_with(self.pointer.offset(offset), bytes, fill) }
    }

    /// Copies from `offset` on, once all that was asked for has run.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn download(&self, offset: usize, bytes: &mut [u8]) -> Result<(), KernelError> {
        assert!(offset + bytes.len() <= self.bytes, "a download beyond its buffer");
        // SAFETY: within the buffer.
        unsafe { self.driver.download(self.pointer.offset(offset), bytes) }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the only owner; launches that use it ran before, in the order of the stream.
            unsafe { self.driver.release(self.pointer) };
        }
    }
}
