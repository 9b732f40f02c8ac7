//! Compiled kernels in the driver: every function is loaded and looked up at start.
//!
//! Nothing is loaded or searched at the driver while serving. A function knows the size of its struct
//! of parameters, so that a struct which differs from the kernel's is refused instead of read.

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_uint};

use super::api::{Api, Handle, Refused, function};
use crate::error::KernelError;

/// The functions of all sources.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    sources: HashMap<&'static str, HashMap<String, Function>>,
}

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// For launches.
    pub(crate) handle: Handle,
    /// Of its one parameter.
    pub(crate) parameter_bytes: usize,
    /// That a launch may ask for.
    pub(crate) shared_bytes_max: usize,
}

impl Modules {
    /// Loads the compiled `source` into the context that is current. Blocks may have
    /// `shared_bytes_max` bytes of shared memory.
    pub(crate) fn load(
        &mut self,
        api: &Api,
        (source, cubin): (&'static str, &[u8]),
        shared_bytes_max: usize,
    ) -> Result<(), KernelError> {
        let refused = |error: Refused| {
            KernelError::Unsupported(format!("the driver refuses the kernels of {source}: {error}"))
        };
        let module = load_module(api, cubin).map_err(refused)?;
        let handles = functions(api, module).map_err(refused)?;
        let mut functions = HashMap::with_capacity(handles.len());
        for handle in handles {
            load_function(api, handle).map_err(refused)?;
            let Some(parameter_bytes) = parameter_bytes(api, handle) else { continue };
            let shared_bytes_max = allow(api, handle, shared_bytes_max).map_err(refused)?;
            let function = Function { handle, parameter_bytes, shared_bytes_max };
            functions.insert(name(api, handle).map_err(refused)?, function);
        }
        self.sources.insert(source, functions);
        Ok(())
    }

    /// A kernel by its source and name.
    pub(crate) fn function(&self, source: &str, name: &str) -> Result<&Function, KernelError> {
        let found = self.sources.get(source).and_then(|functions| functions.get(name));
        found.ok_or_else(|| KernelError::Fault(format!("{source} was loaded without {name}")))
    }
}

fn load_module(api: &Api, cubin: &[u8]) -> Result<Handle, Refused> {
    let mut module = Handle::NULL;
    // SAFETY: an ELF file that says its own length; we made it, or a checksum of ours fits it.
    let code = unsafe { (api.module_load)(&raw mut module, cubin.as_ptr().cast()) };
    api.check("cuModuleLoadData", code)?;
    Ok(module)
}

fn functions(api: &Api, module: Handle) -> Result<Vec<Handle>, Refused> {
    let mut count: c_uint = 0;
    // SAFETY: a module of ours; writes one number.
    let code = unsafe { (api.module_count)(&raw mut count, module) };
    api.check("cuModuleGetFunctionCount", code)?;
    // A source may have nothing for a card.
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut handles = vec![Handle::NULL; count as usize];
    // SAFETY: room for as many handles as are asked for.
    let code = unsafe { (api.module_functions)(handles.as_mut_ptr(), count, module) };
    api.check("cuModuleEnumerateFunctions", code)?;
    Ok(handles)
}

fn name(api: &Api, handle: Handle) -> Result<String, Refused> {
    let mut name = std::ptr::null();
    // SAFETY: a function of ours; writes the address of a string that lives as long as it.
    let code = unsafe { (api.function_name)(&raw mut name, handle) };
    api.check("cuFuncGetName", code)?;
    // SAFETY: as above, and it ends with a zero.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The driver loads code when it is first used, unless told to.
fn load_function(api: &Api, handle: Handle) -> Result<(), Refused> {
    // SAFETY: a function of ours.
    let code = unsafe { (api.function_load)(handle) };
    api.check("cuFuncLoad", code)
}

/// Bytes of the one parameter. `None`: none of our kernels, which all have one.
fn parameter_bytes(api: &Api, handle: Handle) -> Option<usize> {
    let (mut offset, mut bytes) = (0, 0);
    // SAFETY: a function of ours; writes two words, or refuses an index that is not there.
    let code = unsafe { (api.function_parameter)(handle, 0, &raw mut offset, &raw mut bytes) };
    (code == 0).then_some(bytes)
}

/// Lets a function ask for all shared memory there is. Gives how much that is.
fn allow(api: &Api, handle: Handle, shared_bytes_max: usize) -> Result<usize, Refused> {
    let mut declared: c_int = 0;
    // SAFETY: writes one number.
    let code =
        unsafe { (api.function_attribute)(&raw mut declared, function::SHARED_BYTES, handle) };
    api.check("cuFuncGetAttribute", code)?;
    let shared_bytes_max = shared_bytes_max.saturating_sub(usize::try_from(declared).unwrap_or(0));
    // A bound, not a request: a launch takes what it asks for.
    let bound = c_int::try_from(shared_bytes_max).unwrap_or(c_int::MAX);
    // SAFETY: a function of ours.
    let code = unsafe { (api.function_set)(handle, function::DYNAMIC_SHARED_BYTES_MAX, bound) };
    api.check("cuFuncSetAttribute", code)?;
    Ok(shared_bytes_max)
}
