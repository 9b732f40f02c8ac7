//! NVIDIA's libraries, opened at run time where `places` say, before cudarc calls them.
//!
//! cudarc opens a library by its name alone, finds each function when it is first called, and panics
//! where one of them is missing. So we come first: we open the library, which the loader then knows by
//! its name wherever it lies; look up every function that is called; and see to it that cudarc finds
//! this very library. What is missing is an error in words. Libraries stay open for the life of the
//! process: NVIDIA's do not survive being closed.

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

/// What cudarc calls of a library. Made by [`calls`].
#[derive(Clone, Copy)]
pub(crate) struct Calls {
    /// All functions that are called, the first of which no other library has.
    pub(crate) functions: &'static [&'static str],
    /// Whether cudarc finds a library by its names.
    pub(crate) is_present: unsafe fn() -> bool,
    /// Where a function is in the library that cudarc finds. Panics if it finds none.
    pub(crate) address: unsafe fn(&str) -> Option<*mut c_void>,
}

/// Names functions of one of cudarc's modules. No other may be called (a test holds it).
macro_rules! calls {
    ($sys:ident: $($function:ident),* $(,)?) => {
        $crate::cuda::nvidia::library::Calls {
            functions: {
                // Functions that cudarc has, not just names.
                $(let _ = $sys::$function;)*
                &[$(stringify!($function)),*]
            },
            is_present: $sys::is_culib_present,
            address: |function| {
                // SAFETY: an open library; what is found is not called here.
                let library = unsafe { $sys::culib() };
                // SAFETY: as above.
                let symbol = unsafe { library.get::<*mut std::ffi::c_void>(function.as_bytes()) };
                symbol.ok().map(|address| *address)
            },
        }
    };
}

pub(crate) use calls;

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
        // SAFETY: a string that ends with a zero. NVIDIA's libraries may be loaded anywhere and at any
        // time: their constructors ask for nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Library { handle, name }),
            None => Err(last_error()),
        }
    }

    /// A function's address.
    pub(crate) fn symbol(&self, name: &str) -> Result<*mut c_void, String> {
        let missing = || format!("{} has no {name}", self.name);
        let text = CString::new(name).map_err(|_| missing())?;
        // SAFETY: an open library, and a string that ends with a zero.
        let symbol = unsafe { libc::dlsym(self.handle.as_ptr(), text.as_ptr()) };
        if symbol.is_null() { Err(missing()) } else { Ok(symbol) }
    }

    /// Lets cudarc call these functions: all of them are there, and this is where it will find them.
    /// Nothing of cudarc's that belongs to this library may be called before.
    pub(crate) fn allow(&self, calls: &Calls) -> Result<(), String> {
        let addresses: Result<Vec<_>, _> =
            calls.functions.iter().map(|function| self.symbol(function)).collect();
        let (Some(&ours), Some(first)) = (addresses?.first(), calls.functions.first()) else {
            return Ok(());
        };
        // SAFETY: opens libraries of names that are NVIDIA's alone.
        let is_present = unsafe { (calls.is_present)() };
        if !is_present {
            return Err(format!("{} does not bear the name of its library", self.name));
        }
        // SAFETY: as above; there is one, so nothing panics.
        let theirs = unsafe { (calls.address)(first) };
        match theirs {
            Some(theirs) if theirs == ours => Ok(()),
            theirs => Err(format!(
                "{} was found, but under its name the system's loader has {}: put the folder of the \
                 former first in LD_LIBRARY_PATH, or take the latter away",
                self.name,
                theirs.and_then(file_of).map_or_else(
                    || "another library".to_owned(),
                    |file| file.display().to_string()
                )
            )),
        }
    }

    /// The file that a function of this library lies in; what was opened, if the loader does not say.
    pub(crate) fn file_of(&self, symbol: *mut c_void) -> PathBuf {
        file_of(symbol).unwrap_or_else(|| PathBuf::from(&self.name))
    }
}

fn file_of(symbol: *mut c_void) -> Option<PathBuf> {
    // SAFETY: all zeros are a value of this struct of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: an address of a loaded library, and a place for the answer.
    let found = unsafe { libc::dladdr(symbol, &raw mut info) } != 0;
    if !found || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's own string, which lives as long as the library: for ever.
    let file = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(file.to_string_lossy().into_owned()))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use crate::cuda::nvidia::{api, cublaslt, nvrtc};

    /// Functions that the files of this folder call of modules named `sys` or `…_sys`.
    fn called() -> BTreeSet<String> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/nvidia"));
        let mut called = BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|end| end != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(path).unwrap();
            for call in text.split("sys::").skip(1) {
                let name: String =
                    call.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if call[name.len()..].starts_with('(') && name != "culib" {
                    called.insert(name);
                }
            }
        }
        called
    }

    #[test]
    fn what_is_called_was_looked_up() {
        let all = [&api::CALLS, &nvrtc::CALLS, &cublaslt::CALLS];
        let named = all.iter().flat_map(|calls| calls.functions);
        let named: BTreeSet<String> = named.map(|name| (*name).to_owned()).collect();
        let called = called();
        assert!(called.contains("cuInit") && called.contains("nvrtcCompileProgram"));
        // And nothing else, or an older library would be refused for nothing.
        assert_eq!(called, named);
    }
}
