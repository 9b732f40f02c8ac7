//! NVIDIA's run-time compiler: a source and its headers in memory become code for one architecture.
//!
//! Called through cudarc; found at run time like the driver, and needed only where neither a built file nor the cache has
//! the code. Several threads may compile at once.

use std::ffi::{CStr, CString, c_int};
use std::path::PathBuf;

use cudarc::nvrtc::sys;

use super::arch::Arch;
use super::library::{Calls, Library, calls};
use super::places::Places;
use crate::cuda::source::Source;
use crate::error::KernelError;

/// The compiler's functions that are called.
pub(super) const CALLS: Calls = calls!(
    sys: nvrtcVersion, nvrtcGetErrorString, nvrtcCreateProgram, nvrtcDestroyProgram,
    nvrtcCompileProgram, nvrtcGetProgramLogSize, nvrtcGetProgramLog, nvrtcGetCUBINSize, nvrtcGetCUBIN,
);

/// The compiler: it has all functions that are called.
#[derive(Clone)]
pub(crate) struct Nvrtc {
    /// Its library.
    pub(crate) file: PathBuf,
    /// Major and minor.
    pub(crate) version: (u32, u32),
}

/// Names of the library, newest first: with the majors of CUDA they belong to.
const NAMES: [(u32, &str); 2] = [(13, "libnvrtc.so.13"), (12, "libnvrtc.so.12")];

/// The oldest whose code loads, and whose language the sources are written in.
const VERSION_MIN: (u32, u32) = (12, 4);

/// Options beside the architecture. Part of a key: they change what comes out. Products and sums are
/// joined into one rounding where a source says `fused`, and nowhere else: so all kernels that compute the
/// same give the same bits, which the compiler's own choice would not promise, and so does the emulation.
pub(crate) const OPTIONS: [&CStr; 2] = [c"--std=c++17", c"--fmad=false"];

impl Nvrtc {
    /// Finds the compiler. A driver runs code of its own major version of CUDA and of older ones, so
    /// one newer than `major_max` is passed over.
    pub(crate) fn find(places: &Places, major_max: Option<u32>) -> Result<Self, String> {
        let usable = |major: u32| major_max.is_none_or(|max| major <= max);
        let names: Vec<&str> =
            NAMES.iter().filter(|(major, _)| usable(*major)).map(|(_, name)| *name).collect();
        let library = Library::find(&names, places)?;
        library.allow(&CALLS)?;
        let file = library.file_of(library.symbol("nvrtcVersion")?);
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers.
        let result = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        if result != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(format!("{} does not tell its version", file.display()));
        }
        let version = (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
        if version < VERSION_MIN {
            let ((major, minor), (least, least_minor)) = (version, VERSION_MIN);
            return Err(format!(
                "{} is NVRTC {major}.{minor}; {least}.{least_minor} or newer is needed",
                file.display()
            ));
        }
        Ok(Nvrtc { file, version })
    }

    /// Compiles `source` for `arch`: an ELF file for the driver.
    pub(crate) fn compile(&self, source: &Source, arch: Arch) -> Result<Vec<u8>, KernelError> {
        let refused = |why: String| {
            KernelError::Unsupported(format!("{} does not compile for {arch}: {why}", source.name))
        };
        let program = Program::new(source).map_err(refused)?;
        program.compile(arch).map_err(refused)?;
        program.cubin().map_err(refused)
    }
}

/// A program of the compiler, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a zero in a text".to_owned());
        let headers = source.includes();
        let (name, code) = (text(source.name)?, text(source.text)?);
        let names =
            headers.iter().map(|header| text(header.name)).collect::<Result<Vec<_>, _>>()?;
        let texts =
            headers.iter().map(|header| text(header.text)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect();
        let (name_list, text_list): (Vec<_>, Vec<_>) = (pointers(&names), pointers(&texts));
        let mut program = std::ptr::null_mut();
        // SAFETY: strings that end with a zero and two lists of the length given, all of which the
        // compiler copies.
        let result = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                code.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                text_list.as_ptr(),
                name_list.as_ptr(),
            )
        };
        check(result)?;
        Ok(Program(program))
    }

    fn compile(&self, arch: Arch) -> Result<(), String> {
        let target = CString::new(format!("--gpu-architecture={arch}"));
        let target = target.map_err(|_| "a zero in an option".to_owned())?;
        let options: Vec<_> =
            OPTIONS.into_iter().chain([target.as_c_str()]).map(CStr::as_ptr).collect();
        // SAFETY: a program of ours, and a list of the length given of strings that end with a zero.
        let result =
            unsafe { sys::nvrtcCompileProgram(self.0, options.len() as c_int, options.as_ptr()) };
        check(result).map_err(|error| format!("{error}\n{}", self.log()))
    }

    /// The compiler's words, as many as a person reads.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: a program of ours; writes one word.
        let result = unsafe { sys::nvrtcGetProgramLogSize(self.0, &raw mut size) };
        if check(result).is_err() || size == 0 {
            return String::new();
        }
        let mut log = vec![0u8; size];
        // SAFETY: room for as many bytes as were told.
        let result = unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        let log = if check(result).is_ok() { String::from_utf8_lossy(&log) } else { "".into() };
        log.trim_end_matches('\0').chars().take(LOG_CHARS_MAX).collect()
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: a compiled program of ours; writes one word.
        let result = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) };
        check(result)?;
        let mut cubin = vec![0u8; size];
        // SAFETY: room for as many bytes as were told.
        let result = unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) };
        check(result)?;
        if cubin.is_empty() {
            return Err("the compiler gave no code".to_owned());
        }
        Ok(cubin)
    }
}

/// Of a compiler's log that is told.
const LOG_CHARS_MAX: usize = 4000;

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: a program of ours.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn check(result: sys::nvrtcResult) -> Result<(), String> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: gives a constant string for every number.
    let text = unsafe { sys::nvrtcGetErrorString(result) };
    if text.is_null() {
        return Err(format!("NVRTC error {}", result as u32));
    }
    // SAFETY: not null, and ends with a zero.
    Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
