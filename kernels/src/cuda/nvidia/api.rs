//! NVIDIA's driver API: the functions that we call, and what their numbers mean.
//!
//! Types as in cuda.h, whose interface is kept by every driver since version 12.4. Handles are words
//! that only the driver understands.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use super::library::functions;
use crate::error::KernelError;

/// A context, stream, module, function, event or graph of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Handle(pub(crate) usize);

impl Handle {
    /// None.
    pub(crate) const NULL: Self = Handle(0);
}

functions! {
    /// The driver's functions.
    pub(crate) struct Api {
        init = c"cuInit"(c_uint) -> c_int;
        error_name = c"cuGetErrorName"(c_int, *mut *const c_char) -> c_int;
        error_string = c"cuGetErrorString"(c_int, *mut *const c_char) -> c_int;

        device_count = c"cuDeviceGetCount"(*mut c_int) -> c_int;
        device_at = c"cuDeviceGet"(*mut c_int, c_int) -> c_int;
        device_name = c"cuDeviceGetName"(*mut c_char, c_int, c_int) -> c_int;
        device_attribute = c"cuDeviceGetAttribute"(*mut c_int, c_uint, c_int) -> c_int;
        device_memory = c"cuDeviceTotalMem_v2"(*mut usize, c_int) -> c_int;

        context_retain = c"cuDevicePrimaryCtxRetain"(*mut Handle, c_int) -> c_int;
        context_release = c"cuDevicePrimaryCtxRelease_v2"(c_int) -> c_int;
        context_set = c"cuCtxSetCurrent"(Handle) -> c_int;

        stream_create = c"cuStreamCreate"(*mut Handle, c_uint) -> c_int;
        stream_destroy = c"cuStreamDestroy_v2"(Handle) -> c_int;
        stream_wait = c"cuStreamSynchronize"(Handle) -> c_int;

        memory_info = c"cuMemGetInfo_v2"(*mut usize, *mut usize) -> c_int;
        allocate = c"cuMemAlloc_v2"(*mut u64, usize) -> c_int;
        free = c"cuMemFree_v2"(u64) -> c_int;
        fill = c"cuMemsetD8Async"(u64, u8, usize, Handle) -> c_int;
        copy_in = c"cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Handle) -> c_int;
        copy_out = c"cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Handle) -> c_int;

        host_allocate = c"cuMemHostAlloc"(*mut *mut c_void, usize, c_uint) -> c_int;
        host_free = c"cuMemFreeHost"(*mut c_void) -> c_int;

        event_create = c"cuEventCreate"(*mut Handle, c_uint) -> c_int;
        event_record = c"cuEventRecord"(Handle, Handle) -> c_int;
        event_wait = c"cuEventSynchronize"(Handle) -> c_int;
        event_destroy = c"cuEventDestroy_v2"(Handle) -> c_int;

        capture_begin = c"cuStreamBeginCapture_v2"(Handle, c_uint) -> c_int;
        capture_end = c"cuStreamEndCapture"(Handle, *mut Handle) -> c_int;
        graph_instantiate =
            c"cuGraphInstantiateWithFlags"(*mut Handle, Handle, c_ulonglong) -> c_int;
        graph_upload = c"cuGraphUpload"(Handle, Handle) -> c_int;
        graph_launch = c"cuGraphLaunch"(Handle, Handle) -> c_int;
        graph_destroy = c"cuGraphDestroy"(Handle) -> c_int;
        executable_destroy = c"cuGraphExecDestroy"(Handle) -> c_int;

        module_load = c"cuModuleLoadData"(*mut Handle, *const c_void) -> c_int;
        module_count = c"cuModuleGetFunctionCount"(*mut c_uint, Handle) -> c_int;
        module_functions = c"cuModuleEnumerateFunctions"(*mut Handle, c_uint, Handle) -> c_int;
        function_name = c"cuFuncGetName"(*mut *const c_char, Handle) -> c_int;
        function_load = c"cuFuncLoad"(Handle) -> c_int;
        function_parameter =
            c"cuFuncGetParamInfo"(Handle, usize, *mut usize, *mut usize) -> c_int;
        function_attribute = c"cuFuncGetAttribute"(*mut c_int, c_uint, Handle) -> c_int;
        function_set = c"cuFuncSetAttribute"(Handle, c_uint, c_int) -> c_int;
        tensor_map = c"cuTensorMapEncodeTiled"(
            *mut c_void, c_uint, c_uint, u64, *const u64, *const u64, *const u32, *const u32, c_uint,
            c_uint, c_uint, c_uint,
        ) -> c_int;
        launch = c"cuLaunchKernel"(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle,
            *mut *mut c_void, *mut *mut c_void,
        ) -> c_int;
    }
}

/// `CU_DEVICE_ATTRIBUTE_…`.
pub(crate) mod device {
    pub(crate) const MULTIPROCESSORS: u32 = 16;
    pub(crate) const CAPABILITY_MAJOR: u32 = 75;
    pub(crate) const CAPABILITY_MINOR: u32 = 76;
    /// Bytes of shared memory that a block may ask for.
    pub(crate) const SHARED_BYTES_MAX: u32 = 97;
}

/// `CU_TENSOR_MAP_…`.
pub(crate) mod tensor {
    pub(crate) const F16: u32 = 6;
    pub(crate) const F32: u32 = 7;
    pub(crate) const BF16: u32 = 9;
    pub(crate) const NO_INTERLEAVE: u32 = 0;
    pub(crate) const NO_SWIZZLE: u32 = 0;
    /// Over lines of 128 bytes.
    pub(crate) const SWIZZLE_128: u32 = 3;
    /// What is read into the second cache level at a time: 256 bytes.
    pub(crate) const PROMOTE_256: u32 = 3;
    /// What lies outside the tensor.
    pub(crate) const FILL_ZEROS: u32 = 0;
}

/// `CU_FUNC_ATTRIBUTE_…`.
pub(crate) mod function {
    /// Bytes of shared memory that the code declares.
    pub(crate) const SHARED_BYTES: u32 = 1;
    /// Bytes of it that a launch may ask for beside.
    pub(crate) const DYNAMIC_SHARED_BYTES_MAX: u32 = 8;
}

/// `CU_STREAM_NON_BLOCKING`: not held up by the legacy stream.
pub(crate) const STREAM_NON_BLOCKING: u32 = 1;

/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const EVENT_WITHOUT_TIME: u32 = 2;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads may go on with what capturing forbids.
pub(crate) const CAPTURE_THREAD: u32 = 1;
/// `CU_MEMHOSTALLOC_PORTABLE`. Never write-combined: the host reads results from it.
pub(crate) const HOST_PORTABLE: u32 = 1;

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_NO_DEVICE`.
pub(crate) const NO_DEVICE: c_int = 100;

/// A call that the driver refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Function of the driver.
    pub(crate) call: &'static str,
    /// `CUresult`.
    pub(crate) code: c_int,
    /// Its name and meaning.
    words: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} failed with {}", self.call, self.words)
    }
}

/// While serving: the device is not what it was, so the process must end.
impl From<Refused> for KernelError {
    fn from(refused: Refused) -> Self {
        KernelError::Fault(refused.to_string())
    }
}

impl Refused {
    /// Before serving: this machine cannot be used so.
    pub(crate) fn at_start(self) -> KernelError {
        KernelError::Unsupported(self.to_string())
    }
}

impl Api {
    /// An error in words unless `code` is success.
    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), Refused> {
        if code == 0 {
            return Ok(());
        }
        let text = |function: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: writes the address of a constant string, or fails and leaves it null.
            let _ = unsafe { function(code, &raw mut text) };
            if text.is_null() {
                return "unknown".to_owned();
            }
            // SAFETY: the driver's own string, which ends with a zero and is never freed.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let words = format!("{} ({code}): {}", text(self.error_name), text(self.error_string));
        Err(Refused { call, code, words })
    }
}
