//! NVIDIA's driver API by cudarc: which functions we call, and what their errors mean.
//!
//! Types, numbers and functions are cudarc's ([`sys`]). Whoever has a `System`, or something that was
//! made with one, knows that all functions of [`CALLS`] are there. Of a newer driver we take for granted
//! that it gives no error to these calls which CUDA 13.0 does not know.

use std::ffi::{CStr, c_char};

pub(crate) use cudarc::driver::sys;

use super::library::{Calls, calls};
use crate::error::KernelError;

/// The driver's functions that are called.
pub(crate) const CALLS: Calls = calls!(
    sys:
    cuInit,
    cuDriverGetVersion,
    cuGetErrorName,
    cuGetErrorString,
    cuDeviceGetCount,
    cuDeviceGet,
    cuDeviceGetName,
    cuDeviceGetAttribute,
    cuDeviceTotalMem_v2,
    cuDevicePrimaryCtxRetain,
    cuDevicePrimaryCtxRelease_v2,
    cuCtxSetCurrent,
    cuStreamCreate,
    cuStreamDestroy_v2,
    cuStreamSynchronize,
    cuMemGetInfo_v2,
    cuMemAlloc_v2,
    cuMemFree_v2,
    cuMemsetD8Async,
    cuMemcpyHtoDAsync_v2,
    cuMemcpyDtoHAsync_v2,
    cuMemHostAlloc,
    cuMemFreeHost,
    cuEventCreate,
    cuEventRecord,
    cuEventSynchronize,
    cuEventDestroy_v2,
    cuStreamBeginCapture_v2,
    cuStreamEndCapture,
    cuGraphInstantiateWithFlags,
    cuGraphUpload,
    cuGraphLaunch,
    cuGraphDestroy,
    cuGraphExecDestroy,
    cuModuleLoadData,
    cuModuleUnload,
    cuModuleGetFunctionCount,
    cuModuleEnumerateFunctions,
    cuFuncGetName,
    cuFuncLoad,
    cuFuncGetParamInfo,
    cuFuncGetAttribute,
    cuFuncSetAttribute,
    cuTensorMapEncodeTiled,
    cuLaunchKernelEx,
);

/// A handle: an address that the driver alone follows, on whatever thread.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Handle<T>(pub(crate) *mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

// SAFETY: never followed on the host; the driver takes its handles on every thread.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// None.
    pub(crate) const NULL: Self = Handle(std::ptr::null_mut());

    /// Whether it is none.
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// A GPU as one process uses it.
pub(crate) type Context = Handle<sys::CUctx_st>;
/// What is done in order.
pub(crate) type Stream = Handle<sys::CUstream_st>;
/// A place in a stream.
pub(crate) type Event = Handle<sys::CUevent_st>;
/// A recorded graph, ready to run.
pub(crate) type Executable = Handle<sys::CUgraphExec_st>;
/// Loaded code.
pub(crate) type Module = Handle<sys::CUmod_st>;
/// A kernel of it.
pub(crate) type Function = Handle<sys::CUfunc_st>;

/// Makes a context current on this thread: cheap where it is.
pub(crate) fn enter(context: Context) -> Result<(), Refused> {
    // SAFETY: a context that whoever has its handle holds.
    let code = unsafe { sys::cuCtxSetCurrent(context.0) };
    check("cuCtxSetCurrent", code)
}

/// A call that the driver refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Function of the driver.
    pub(crate) call: &'static str,
    /// What it gave.
    pub(crate) code: sys::CUresult,
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

/// An error in words unless `code` is success.
pub(crate) fn check(call: &'static str, code: sys::CUresult) -> Result<(), Refused> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
    // SAFETY: writes the address of a constant string, or fails and leaves it null.
    let _ = unsafe { sys::cuGetErrorName(code, &raw mut name) };
    // SAFETY: as above.
    let _ = unsafe { sys::cuGetErrorString(code, &raw mut text) };
    let words = format!("{} ({}): {}", text_of(name), code as u32, text_of(text));
    Err(Refused { call, code, words })
}

/// The driver's own constant string.
fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: ends with a zero and is never freed.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
