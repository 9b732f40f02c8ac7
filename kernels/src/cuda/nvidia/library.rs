//! A shared library that is opened at run time, and tables of its functions.
//!
//! By absolute path or by the system's loader. Libraries stay open for the life of the process:
//! NVIDIA's do not survive being closed. A table names exactly what we call, so that a library
//! which lacks a function is one error in words.

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use super::places::Places;

/// An open library.
#[derive(Debug)]
pub(crate) struct Library {
    handle: NonNull<c_void>,
    name: String,
}

impl Library {
    /// The first library of these names that opens: in `places.first`, by the system's loader, in
    /// `places.folders`. The error says what was tried.
    pub(crate) fn find(names: &[&str], places: &Places) -> Result<Self, String> {
        let mut broken = Vec::new();
        for folder in &places.first {
            if let Some(library) = Self::in_folder(folder, names, &mut broken) {
                return Ok(library);
            }
        }
        for name in names {
            match Self::open(Path::new(name)) {
                Ok(library) => return Ok(library),
                Err(why) if why.contains("No such file") => {}
                Err(why) => broken.push(why),
            }
        }
        for folder in &places.folders {
            if let Some(library) = Self::in_folder(folder, names, &mut broken) {
                return Ok(library);
            }
        }
        let wanted = names.first().copied().unwrap_or_default();
        match broken.first() {
            Some(why) => Err(format!("{wanted} does not open: {why}")),
            None => Err(format!("{wanted} was not found")),
        }
    }

    fn in_folder(folder: &Path, names: &[&str], broken: &mut Vec<String>) -> Option<Self> {
        let mut paths = names.iter().map(|name| folder.join(name)).filter(|path| path.exists());
        paths.find_map(|path| {
            open_companions(folder, &path);
            Self::open(&path).map_err(|why| broken.push(why)).ok()
        })
    }

    /// A path with a folder in it, or a name for the loader.
    fn open(path: &Path) -> Result<Self, String> {
        let name = path.display().to_string();
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| name.clone())?;
        // SAFETY: a string that ends with a zero; the library is one that its user chose.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Library { handle, name }),
            None => Err(last_error()),
        }
    }

    /// A function's address.
    pub(crate) fn symbol(&self, name: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: an open library, and a string that ends with a zero.
        let symbol = unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) };
        if symbol.is_null() {
            return Err(format!("{} has no {}", self.name, name.to_string_lossy()));
        }
        Ok(symbol)
    }

    /// The file that a function of this library lies in; what was opened, if the loader does not say.
    pub(crate) fn file_of(&self, symbol: *mut c_void) -> PathBuf {
        // SAFETY: all zeros are a value of this struct of pointers.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: an address of a loaded library, and a place for the answer.
        let found = unsafe { libc::dladdr(symbol, &raw mut info) } != 0;
        if !found || info.dli_fname.is_null() {
            return PathBuf::from(&self.name);
        }
        // SAFETY: the loader's own string, which lives as long as the library: for ever.
        let file = unsafe { CStr::from_ptr(info.dli_fname) };
        PathBuf::from(file.to_string_lossy().into_owned())
    }
}

/// NVRTC looks for its built-in functions by name alone. Where the loader does not know their folder
/// they have to be open before.
fn open_companions(folder: &Path, library: &Path) {
    let is_nvrtc =
        library.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc."));
    if !is_nvrtc {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("libnvrtc-builtins.so") && !name.contains(".alt.") {
            // Without them NVRTC says itself what it lacks.
            let _ = Library::open(&entry.path());
        }
    }
}

fn last_error() -> String {
    // SAFETY: takes nothing; the string is this thread's until its next call.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return "the loader gives no reason".to_owned();
    }
    // SAFETY: not null, and ends with a zero.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}

/// Declares a table of a library's functions: a field's name, the symbol, and its C type.
macro_rules! functions {
    (
        $(#[$about:meta])*
        pub(crate) struct $table:ident {
            $($field:ident = $symbol:literal ($($type:ty),* $(,)?) -> $result:ty;)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy)]
        pub(crate) struct $table {
            $(pub(crate) $field: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        impl $table {
            /// Looks all of them up.
            ///
            /// # Safety
            /// The functions of `library` with these names have these types.
            pub(crate) unsafe fn of(library: &$crate::cuda::nvidia::library::Library) -> Result<Self, String> {
                Ok($table {
                    $($field: {
                        let symbol = library.symbol($symbol)?;
                        // SAFETY: the caller's promise.
                        unsafe {
                            std::mem::transmute::<
                                *mut std::ffi::c_void,
                                unsafe extern "C" fn($($type),*) -> $result,
                            >(symbol)
                        }
                    },)*
                })
            }
        }
    };
}

pub(crate) use functions;
