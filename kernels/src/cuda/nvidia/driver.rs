//! A GPU behind [`Driver`]: its primary context, one stream, and all kernels loaded.
//!
//! Every call acts in the order of the stream. A fault of the device shows at the next call that
//! waits, with the driver's name for it; nothing is tried again.

use std::ffi::{c_int, c_void};
use std::fmt;

use super::api::{Api, HOST_PORTABLE, Handle, OUT_OF_MEMORY, STREAM_NON_BLOCKING};
use super::cubins::Cubin;
use super::modules::Modules;
use super::stream_marks::{Graphs, Marks};
use super::system::{Gpu, System};
use super::tensor_map::encode;
use crate::cuda::driver::{DevicePointer, Driver, GraphIndex, HostPointer, Launch, MarkIndex};
use crate::cuda::tensor_map::{TensorMap, TensorMapSpec};
use crate::device::DeviceMemory;
use crate::error::KernelError;

/// A GPU that runs kernels.
pub(crate) struct Nvidia {
    api: Api,
    gpu: Gpu,
    device: c_int,
    context: Handle,
    stream: Handle,
    modules: Modules,
    marks: Marks,
    graphs: Graphs,
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
        let (api, device) = (system.api, system.device(index)?);
        let mut context = Handle::NULL;
        // SAFETY: a device of the driver; writes one handle, given back on drop.
        let code = unsafe { (api.context_retain)(&raw mut context, device) };
        api.check("cuDevicePrimaryCtxRetain", code).map_err(|error| {
            KernelError::Unsupported(format!("GPU {index} ({}) cannot be taken: {error}", gpu.name))
        })?;
        let stream = Handle::NULL;
        let (marks, graphs, modules) = (Marks::default(), Graphs::default(), Modules::default());
        let mut nvidia = Nvidia { api, gpu, device, context, stream, modules, marks, graphs };
        nvidia.enter()?;
        let mut stream = Handle::NULL;
        // SAFETY: the context is current; writes one handle.
        let code = unsafe { (api.stream_create)(&raw mut stream, STREAM_NON_BLOCKING) };
        api.check("cuStreamCreate", code).map_err(|error| error.at_start())?;
        nvidia.stream = stream;
        Ok(nvidia)
    }

    /// Loads compiled kernels.
    pub(crate) fn with_kernels(mut self, cubins: &[Cubin]) -> Result<Self, KernelError> {
        self.enter()?;
        for Cubin { source, code } in cubins {
            self.modules.load(&self.api, (source.name, code), self.gpu.shared_bytes_max)?;
        }
        Ok(self)
    }

    /// The card.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Makes the context current on this thread: cheap where it is.
    fn enter(&self) -> Result<(), KernelError> {
        // SAFETY: a context that we hold.
        let code = unsafe { (self.api.context_set)(self.context) };
        Ok(self.api.check("cuCtxSetCurrent", code)?)
    }

    /// Waits for all that was asked for.
    fn wait_for_all(&self) -> Result<(), KernelError> {
        // SAFETY: a stream of ours.
        let code = unsafe { (self.api.stream_wait)(self.stream) };
        Ok(self.api.check("cuStreamSynchronize", code)?)
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
        encode(&self.api, spec)
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, KernelError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two words.
        let code = unsafe { (self.api.memory_info)(&raw mut free, &raw mut total) };
        self.api.check("cuMemGetInfo", code)?;
        Ok(Some(DeviceMemory { free: free as u64, total: total as u64 }))
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<DevicePointer, KernelError> {
        self.enter()?;
        let mut pointer = 0;
        // The driver refuses to allocate nothing.
        // SAFETY: writes one word. The driver aligns to 256 bytes at least.
        let code = unsafe { (self.api.allocate)(&raw mut pointer, bytes.max(1)) };
        if code == OUT_OF_MEMORY {
            return Err(KernelError::OutOfMemory { what: what.to_owned(), bytes });
        }
        self.api.check("cuMemAlloc", code)?;
        // SAFETY: allocated just now.
        let code = unsafe { (self.api.fill)(pointer, 0, bytes.max(1), self.stream) };
        self.api.check("cuMemsetD8Async", code)?;
        Ok(DevicePointer(pointer))
    }

    unsafe fn release(&self, pointer: DevicePointer) {
        // After a fault nothing can be given back, nor need it be: the process ends.
        if self.enter().is_ok() {
            // What still runs may use it.
            let _ = self.wait_for_all();
            // SAFETY: the caller's promise.
            let _ = unsafe { (self.api.free)(pointer.0) };
        }
    }

    unsafe fn upload(&self, to: DevicePointer, bytes: &[u8]) -> Result<(), KernelError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise; the bytes stay until the wait below.
        let code =
            unsafe { (self.api.copy_in)(to.0, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        self.api.check("cuMemcpyHtoDAsync", code)?;
        self.wait_for_all()
    }

    unsafe fn download(&self, from: DevicePointer, bytes: &mut [u8]) -> Result<(), KernelError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise; the bytes are ours alone until the wait below.
        let code = unsafe {
            (self.api.copy_out)(bytes.as_mut_ptr().cast(), from.0, bytes.len(), self.stream)
        };
        self.api.check("cuMemcpyDtoHAsync", code)?;
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
        // A kernel has one parameter, the struct itself: the driver copies it while it launches.
        let mut parameters = [launch.parameters.cast_mut()];
        // SAFETY: the struct has the size that the kernel expects; the rest is the caller's promise.
        let code = unsafe {
            (self.api.launch)(
                function.handle,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.grid.shared_bytes as u32,
                self.stream,
                parameters.as_mut_ptr(),
                std::ptr::null_mut::<*mut c_void>(),
            )
        };
        self.api.check(launch.name, code)?;
        Ok(())
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer, KernelError> {
        self.enter()?;
        let mut pointer = std::ptr::null_mut();
        let bytes = bytes.max(1);
        // SAFETY: writes one address. Whole pages: aligned to more than 256 bytes.
        let code = unsafe { (self.api.host_allocate)(&raw mut pointer, bytes, HOST_PORTABLE) };
        if code == OUT_OF_MEMORY {
            let reason = format!("the host has no {bytes} bytes of memory that can be page-locked");
            return Err(KernelError::Unsupported(reason));
        }
        self.api.check("cuMemHostAlloc", code)?;
        let pointer: *mut u8 = pointer.cast();
        // SAFETY: allocated just now, and nobody else's.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(HostPointer(pointer))
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        if self.enter().is_ok() {
            // What still runs may use it.
            let _ = self.wait_for_all();
            // SAFETY: the caller's promise.
            let _ = unsafe { (self.api.host_free)(pointer.0.cast()) };
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
        let code = unsafe { (self.api.copy_in)(to.0, from.0.cast(), bytes, self.stream) };
        Ok(self.api.check("cuMemcpyHtoDAsync", code)?)
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
        let code = unsafe { (self.api.copy_out)(to.0.cast(), from.0, bytes, self.stream) };
        Ok(self.api.check("cuMemcpyDtoHAsync", code)?)
    }

    fn mark(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.enter()?;
        Ok(self.marks.set(&self.api, self.stream, mark)?)
    }

    fn wait(&self, mark: MarkIndex) -> Result<(), KernelError> {
        self.enter()?;
        self.marks.wait(&self.api, mark)
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        self.enter()?;
        Ok(Graphs::begin(&self.api, self.stream)?)
    }

    fn end_capture(&self) -> Result<GraphIndex, KernelError> {
        self.enter()?;
        Ok(self.graphs.end(&self.api, self.stream)?)
    }

    unsafe fn replay(&self, graph: GraphIndex) -> Result<(), KernelError> {
        self.enter()?;
        self.graphs.launch(&self.api, self.stream, graph)
    }

    fn release_graph(&self, graph: GraphIndex) {
        if self.enter().is_ok() {
            let _ = self.wait_for_all();
            self.graphs.forget(&self.api, graph);
        }
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        if self.enter().is_ok() && self.stream != Handle::NULL {
            self.marks.release(&self.api);
            // SAFETY: ours, and nobody launches any more.
            let _ = unsafe { (self.api.stream_destroy)(self.stream) };
        }
        // SAFETY: retained once, in `open`. Modules go with the context.
        let _ = unsafe { (self.api.context_release)(self.device) };
    }
}
