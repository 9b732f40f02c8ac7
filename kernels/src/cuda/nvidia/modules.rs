//! Compiled kernels in the driver: every function is loaded and looked up at start.
//!
//! Nothing is loaded or searched at the driver while serving. A function knows the size of its struct
//! of parameters, so that a struct which differs from the kernel's is refused instead of read.

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_uint};

use super::api::{self, Module, Refused, check, sys};
use crate::error::KernelError;

/// The functions of all sources.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    loaded: Vec<Module>,
    sources: HashMap<&'static str, HashMap<String, Function>>,
}

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// For launches.
    pub(crate) handle: api::Function,
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
        (source, cubin): (&'static str, &[u8]),
        shared_bytes_max: usize,
    ) -> Result<(), KernelError> {
        let refused = |error: Refused| {
            KernelError::Unsupported(format!("the driver refuses the kernels of {source}: {error}"))
        };
        let module = load_module(cubin).map_err(refused)?;
        self.loaded.push(module);
        let handles = functions(module).map_err(refused)?;
        let mut functions = HashMap::with_capacity(handles.len());
        for handle in handles {
            load_function(handle).map_err(refused)?;
            let Some(parameter_bytes) = parameter_bytes(handle) else { continue };
            let shared_bytes_max = allow(handle, shared_bytes_max).map_err(refused)?;
            let function = Function { handle, parameter_bytes, shared_bytes_max };
            functions.insert(name(handle).map_err(refused)?, function);
        }
        self.sources.insert(source, functions);
        Ok(())
    }

    /// Gives all code back, which nothing runs any more. Others may hold the context for longer.
    pub(crate) fn release(&mut self) {
        self.sources.clear();
        for module in self.loaded.drain(..) {
            // SAFETY: a module of ours, taken from the list; nobody has its functions any more.
            let _ = unsafe { sys::cuModuleUnload(module.0) };
        }
    }

    /// A kernel by its source and name.
    pub(crate) fn function(&self, source: &str, name: &str) -> Result<&Function, KernelError> {
        let found = self.sources.get(source).and_then(|functions| functions.get(name));
        found.ok_or_else(|| KernelError::Fault(format!("{source} was loaded without {name}")))
    }
}

fn load_module(cubin: &[u8]) -> Result<Module, Refused> {
    let mut module = std::ptr::null_mut();
    // SAFETY: an ELF file that says its own length; we made it, or a checksum of ours fits it.
    let code = unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) };
    check("cuModuleLoadData", code)?;
    Ok(api::Handle(module))
}

fn functions(module: Module) -> Result<Vec<api::Function>, Refused> {
    let mut count: c_uint = 0;
    // SAFETY: a module of ours; writes one number.
    let code = unsafe { sys::cuModuleGetFunctionCount(&raw mut count, module.0) };
    check("cuModuleGetFunctionCount", code)?;
    // A source may have nothing for a card.
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut handles = vec![api::Function::NULL; count as usize];
    // SAFETY: room for as many handles as are asked for, each an address and nothing else.
    let code =
        unsafe { sys::cuModuleEnumerateFunctions(handles.as_mut_ptr().cast(), count, module.0) };
    check("cuModuleEnumerateFunctions", code)?;
    Ok(handles)
}

fn name(function: api::Function) -> Result<String, Refused> {
    let mut name = std::ptr::null();
    // SAFETY: a function of ours; writes the address of a string that lives as long as it.
    let code = unsafe { sys::cuFuncGetName(&raw mut name, function.0) };
    check("cuFuncGetName", code)?;
    // SAFETY: as above, and it ends with a zero.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The driver loads code when it is first used, unless told to.
fn load_function(function: api::Function) -> Result<(), Refused> {
    // SAFETY: a function of ours.
    let code = unsafe { sys::cuFuncLoad(function.0) };
    check("cuFuncLoad", code)
}

/// Bytes of the one parameter. `None`: none of our kernels, which all have one.
fn parameter_bytes(function: api::Function) -> Option<usize> {
    let (mut offset, mut bytes) = (0, 0);
    // SAFETY: a function of ours; writes two words, or refuses an index that is not there.
    let code = unsafe { sys::cuFuncGetParamInfo(function.0, 0, &raw mut offset, &raw mut bytes) };
    (code == sys::CUresult::CUDA_SUCCESS).then_some(bytes)
}

/// Lets a function ask for all shared memory there is. Gives how much that is.
///
/// How a multiprocessor parts its memory between shared memory and its first cache is left to the driver,
/// which goes by what a launch asks for. To ask for all of it everywhere would keep that as it is from
/// one kernel to the next, and leave those that stream weights the least cache to hold what is under way: which
/// costs more is the card's to say (part `costs` of the hardware suite).
fn allow(function: api::Function, shared_bytes_max: usize) -> Result<usize, Refused> {
    use sys::CUfunction_attribute as Attribute;
    let mut declared: c_int = 0;
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    // SAFETY: writes one number.
    let code = unsafe { sys::cuFuncGetAttribute(&raw mut declared, attribute, function.0) };
    check("cuFuncGetAttribute", code)?;
    let shared_bytes_max = shared_bytes_max.saturating_sub(usize::try_from(declared).unwrap_or(0));
    // A bound, not a request: a launch takes what it asks for.
    let bound = c_int::try_from(shared_bytes_max).unwrap_or(c_int::MAX);
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: a function of ours.
    let code = unsafe { sys::cuFuncSetAttribute(function.0, attribute, bound) };
    check("cuFuncSetAttribute", code)?;
    Ok(shared_bytes_max)
}
