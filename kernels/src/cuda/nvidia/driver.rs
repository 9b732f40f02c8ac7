//! A GPU behind [`Driver`]: its primary context, one stream, and all kernels loaded.
//!
//! Every call acts in the order of the stream; on Hopper a kernel's blocks may take their places while
//! the kernel before it ends, and wait there. A fault of the device shows at a later call, the next that
//! waits at the latest, with the driver's name for it; nothing is tried again.

use std::fmt;

use super::api::{Context, Handle, Refused, Stream, check, enter, sys};
use super::cubins::Cubin;
use super::cublaslt::{Blas, CublasLt};
use super::host_memory::{self, Uploads};
use super::modules::Modules;
use super::stream_marks::{Graphs, Marks};
use super::system::{Gpu, System};
use super::tensor_map::encode;
use crate::cuda::driver::{
    DevicePointer, Driver, Fill, GraphIndex, HostPointer, Launch, MarkIndex,
};
use crate::cuda::product_library::ProductLibrary;
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::device::DeviceMemory;
use crate::error::KernelError;

/// A GPU that runs kernels.
pub(crate) struct Nvidia {
    gpu: Gpu,
    device: sys::CUdevice,
    context: Context,
    stream: Stream,
    /// Whether a kernel may start while the one before it ends.
    overlaps: bool,
    modules: Modules,
    marks: Marks,
    graphs: Graphs,
    uploads: Uploads,
    blas: Option<Blas>,
}

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvidia").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

impl Nvidia {
    /// Takes the GPU `index`, with no kernels yet.
    pub(crate) fn open(system: &System, index: usize) -> Result<Self, KernelError> {
        let gpu = system.gpu(index)?;
        gpu.check()?;
        let device = system.device(index)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: a device of the driver; writes one handle, given back on drop.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        check("cuDevicePrimaryCtxRetain", code).map_err(|error| {
            KernelError::Unsupported(format!("GPU {index} ({}) cannot be taken: {error}", gpu.name))
        })?;
        let mut nvidia = Nvidia {
            overlaps: gpu.capability >= OVERLAP_MIN,
            gpu,
            device,
            context: Handle(context),
            stream: Stream::NULL,
            modules: Modules::default(),
            marks: Marks::default(),
            graphs: Graphs::default(),
            uploads: Uploads::default(),
            blas: None,
        };
        nvidia.enter()?;
        let mut stream = std::ptr::null_mut();
        // Not held up by the legacy stream.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; writes one handle.
        let code = unsafe { sys::cuStreamCreate(&raw mut stream, flags) };
        check("cuStreamCreate", code).map_err(Refused::at_start)?;
        nvidia.stream = Handle(stream);
        Ok(nvidia)
    }

    /// Lets each kernel wait for the end of the one before it, as if none could begin earlier.
    pub(crate) fn without_overlap(mut self) -> Self {
        self.overlaps = false;
        self
    }

    /// Loads compiled kernels.
    pub(crate) fn with_kernels(mut self, cubins: &[Cubin]) -> Result<Self, KernelError> {
        self.enter()?;
        for Cubin { source, code } in cubins {
            self.modules.load((source.name, code), self.gpu.shared_bytes_max)?;
        }
        Ok(self)
    }

    /// Puts NVIDIA's library of products to work.
    pub(crate) fn use_library(&mut self, library: CublasLt) -> Result<(), KernelError> {
        self.blas = Some(Blas::new(library, self.context, self.stream)?);
        Ok(())
    }

    /// The card.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn enter(&self) -> Result<(), KernelError> {
        Ok(enter(self.context)?)
    }

    /// Waits for all that was asked for.
    fn wait_for_all(&self) -> Result<(), KernelError> {
        // SAFETY: a stream of ours.
        let code = unsafe { sys::cuStreamSynchronize(self.stream.0) };
        Ok(check("cuStreamSynchronize", code)?)
    }
}

impl Driver for Nvidia {
    fn name(&self) -> String {
        let Gpu { name, index, capability: (major, minor), multiprocessors, .. } = &self.gpu;
        format!("{name} (cuda:{index}, compute capability {major}.{minor}, {multiprocessors} SMs)")
    }

    fn shared_bytes_max(&self) -> usize {
        self.gpu.shared_bytes_max
    }

    fn capability(&self) -> (u32, u32) {
        self.gpu.capability
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap, KernelError> {
        self.enter()?;
        encode(spec)
    }

    fn product_library(&self) -> Option<&dyn ProductLibrary> {
        self.blas.as_ref().map(|blas| blas as &dyn ProductLibrary)
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, KernelError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two words.
        let code = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", code)?;
        Ok(Some(DeviceMemory { free: free as u64, total: total as u64 }))
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<DevicePointer, KernelError> {
        self.enter()?;
        let mut pointer = 0;
        // The driver refuses to allocate nothing.
        // SAFETY: writes one word. The driver aligns to 256 bytes at least.
        let code = unsafe { sys::cuMemAlloc_v2(&raw mut pointer, bytes.max(1)) };
        if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(KernelError::OutOfMemory { what: what.to_owned(), bytes });
        }
        check("cuMemAlloc", code)?;
        // SAFETY: allocated just now.
        let code = unsafe { sys::cuMemsetD8Async(pointer, 0, bytes.max(1), self.stream.0) };
        check("cuMemsetD8Async", code)?;
        Ok(DevicePointer(pointer))
    }

    unsafe fn release(&self, pointer: DevicePointer) {
        // After a fault nothing can be given back, nor need it be: the process ends.
        if self.enter().is_ok() {
            // What still runs may use it.
            let _ = self.wait_for_all();
            // SAFETY: the caller's promise.
            let _ = unsafe { sys::cuMemFree_v2(pointer.0) };
        }
    }

    unsafe fn upload_with(
        &self,
        to: DevicePointer,
        bytes: usize,
        fill: &mut Fill<'_>,
    ) -> Result<(), KernelError> {
        self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.uploads.send(self.stream, (to, bytes), fill) }
    }

    fn page_locked_bytes(&self) -> usize {
        host_memory::UPLOAD_BYTES
    }

    unsafe fn download(&self, from: DevicePointer, bytes: &mut [u8]) -> Result<(), KernelError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise; the bytes are ours alone until the wait below.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from.0, bytes.len(), self.stream.0)
        };
        check("cuMemcpyDtoHAsync", code)?;
        self.wait_for_all()
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.enter()?;
        let function = self.modules.function(launch.source.name, launch.name)?;
        if launch.parameter_bytes != function.parameter_bytes
            || launch.grid.shared_bytes > function.shared_bytes_max
        {
            return Err(KernelError::Fault(format!(
                "{} takes {} bytes of parameters and up to {} of shared memory, not {} and {}",
                launch.name,
                function.parameter_bytes,
                function.shared_bytes_max,
                launch.parameter_bytes,
                launch.grid.shared_bytes
            )));
        }
        let [x, y, z] = launch.grid.blocks;
        let mut attribute = may_begin_early();
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.grid.shared_bytes as u32,
            hStream: self.stream.0,
            attrs: &raw mut attribute,
            numAttrs: u32::from(self.overlaps),
        };
        // A kernel has one parameter, the struct itself: the driver copies it while it launches.
        let mut parameters = [launch.parameters.cast_mut()];
        // SAFETY: the struct has the size that the kernel expects, and the attributes are as many as
        // are said; every kernel begins with the wait that an early start asks for (prelude.cuh); the
        // rest is the caller's promise.
        let code = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.handle.0,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        Ok(check(launch.name, code)?)
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError> {
        self.enter()?;
        host_memory::allocate(bytes.max(1))
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        if self.enter().is_ok() {
            // What still runs may use it.
            let _ = self.wait_for_all();
            // SAFETY: the caller's promise, and no copy runs.
            unsafe { host_memory::release(pointer) };
        }
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: HostPointer,
        bytes: usize,
    ) -> Result<(), KernelError> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.0.cast(), bytes, self.stream.0) };
        Ok(check("cuMemcpyHtoDAsync", code)?)
    }

    unsafe fn copy_out(
        &self,
        to: HostPointer,
        from: DevicePointer,
        bytes: usize,
    ) -> Result<(), KernelError> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.0.cast(), from.0, bytes, self.stream.0) };
        Ok(check("cuMemcpyDtoHAsync", code)?)
    }

    fn reserve_marks(&self, count: u32) -> Result<MarkIndex, KernelError> {
        self.enter()?;
        Ok(self.marks.reserve(count)?)
    }

    fn mark(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.enter()?;
        self.marks.set(self.stream, mark)
    }

    fn wait(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.enter()?;
        self.marks.wait(mark)
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        self.enter()?;
        Ok(Graphs::begin(self.stream)?)
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        self.enter()?;
        Ok(self.graphs.end(self.stream)?)
    }

    unsafe fn replay(&self, graph: GraphIndex) -> Result<(), KernelError> {
        self.enter()?;
        self.graphs.launch(self.stream, graph)
    }

    fn release_graph(&self, graph: GraphIndex) {
        if self.enter().is_ok() {
            let _ = self.wait_for_all();
            self.graphs.forget(graph);
        }
    }
}

/// Lets a kernel begin when the blocks of the one before it allow it, up to its own wait: what
/// `griddepcontrol` of PTX is for. In a graph too.
fn may_begin_early() -> sys::CUlaunchAttribute {
    use sys::CUlaunchAttributeID as Attribute;
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let id = Attribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

/// The first cards whose kernels may begin early.
const OVERLAP_MIN: (u32, u32) = (9, 0);

impl Drop for Nvidia {
    fn drop(&mut self) {
        // It works on the stream and in the context.
        self.blas = None;
        if self.enter().is_ok() && !self.stream.is_null() {
            // A copy may still be on its way.
            let _ = self.wait_for_all();
            self.uploads.end();
            self.marks.release();
            // SAFETY: ours, and nobody launches any more.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream.0) };
            self.modules.release();
        }
        // SAFETY: retained once, in `open`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
