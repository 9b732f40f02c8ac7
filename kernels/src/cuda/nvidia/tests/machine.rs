//! A machine with a driver, a compiler and a library of products of our own: `libcuda.cpp`, `libnvrtc.cpp`
//! and `libcublasLt.cpp` beside the emulation, compiled once, opened as NVIDIA's would be.
//!
//! A process has one driver, as cudarc opens it, so machines come one after another, and each is the
//! same library told to be another machine.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::cuda::nvidia::Places;

/// A folder with libraries, and what they do.
pub(super) struct Machine {
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// The libraries by the names under which a loader looks for them.
const LIBRARIES: [(&str, &str); 3] = [
    ("libcuda.so.1", "libcuda.cpp"),
    ("libnvrtc.so.13", "libnvrtc.cpp"),
    ("libcublasLt.so.13", "libcublasLt.cpp"),
];

impl Machine {
    /// A machine whose `behaviour` libcuda.cpp explains.
    pub(super) fn new(behaviour: &str) -> Self {
        let machine = Self::empty();
        for (name, source) in LIBRARIES {
            // The same file, or the loader would take it for another library.
            std::os::unix::fs::symlink(compiled(name, source), machine.path(name)).unwrap();
        }
        std::fs::write(machine.path("behaviour"), behaviour).unwrap();
        be_machine(machine.folder.path());
        machine
    }

    fn empty() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Machine { folder: tempfile::tempdir().unwrap(), _turn: turn }
    }

    /// The folder of a copy of a library: the loader takes it for another one.
    pub(super) fn copy_aside(&self, name: &str) -> PathBuf {
        let folder = self.path("aside");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(self.path(name), folder.join(name)).unwrap();
        folder
    }

    /// A machine with this driver, and no compiler.
    pub(super) fn with_driver(text: &str) -> Self {
        let machine = Self::empty();
        std::fs::write(machine.path("driver.c"), text).unwrap();
        compile(&machine.path("driver.c"), &machine.path("libcuda.so.1"));
        machine
    }

    /// A machine with this file, and nothing else.
    pub(super) fn with_file(name: &str, text: &str) -> Self {
        let machine = Self::empty();
        std::fs::write(machine.path(name), text).unwrap();
        machine
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where its libraries and its cache are.
    pub(super) fn places(&self) -> Places {
        Places {
            first: vec![self.folder.path().to_owned()],
            folders: vec![],
            cache: Some(self.path("cache")),
            kernels: None,
        }
    }

    /// The same, where what is compiled is kept from test to test.
    pub(super) fn lasting_places(&self) -> Places {
        // The compiler's own code is not in a key: it is a folder for each.
        let [_, (name, source), _] = LIBRARIES;
        Places { cache: Some(compiled(name, source).with_extension("cubins")), ..self.places() }
    }

    /// Unless something has opened it before: the loader forgets no library.
    pub(super) fn without_compiler(self) -> Self {
        std::fs::remove_file(self.path("libnvrtc.so.13")).unwrap();
        self
    }

    /// Behaves so from now on.
    pub(super) fn change(&self, behaviour: &str) {
        std::fs::write(self.path("behaviour"), behaviour).unwrap();
        type Change = unsafe extern "C" fn();
        let change = of_the_driver(c"emulated_change");
        // SAFETY: the function has this type.
        unsafe { std::mem::transmute::<*mut libc::c_void, Change>(change)() };
    }

    pub(super) fn without_products(self) -> Self {
        std::fs::remove_file(self.path("libcublasLt.so.13")).unwrap();
        self
    }

    /// Calls of the driver so far, if its behaviour says `log`.
    pub(super) fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Calls of one function, with its arguments.
    pub(super) fn calls_of(&self, function: &str) -> Vec<String> {
        let start = format!("{function} ");
        self.calls().iter().filter_map(|call| Some(call.strip_prefix(&start)?.to_owned())).collect()
    }
}

/// A function of the driver of this process that is none of a driver's.
fn of_the_driver(name: &CStr) -> *mut libc::c_void {
    let [(library, source), ..] = LIBRARIES;
    let driver = text(&compiled(library, source));
    // SAFETY: a library of ours, and strings that end with a zero.
    let symbol = unsafe {
        let driver = libc::dlopen(driver.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        libc::dlsym(driver, name.as_ptr())
    };
    assert!(!symbol.is_null());
    symbol
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

/// Tells it which machine it is in.
fn be_machine(folder: &Path) {
    type Be = unsafe extern "C" fn(*const c_char);
    let be = of_the_driver(c"emulated_machine");
    // SAFETY: the function has this type, and copies the string.
    unsafe { std::mem::transmute::<*mut libc::c_void, Be>(be)(text(folder).as_ptr()) };
}

/// The library, compiled unless one of the same sources is there.
fn compiled(name: &str, source: &str) -> PathBuf {
    let emulation = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/emulation"));
    let mut hasher = blake3::Hasher::new();
    for file in [source, "emulate.h", "hopper.h"] {
        hasher.update(&std::fs::read(emulation.join(file)).unwrap());
    }
    hasher.update(emulation.as_os_str().as_encoded_bytes());
    hasher.update(name.as_bytes());
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().join("emulated-kernels");
    let library = folder.join(format!("{}-{name}", hasher.finalize().to_hex()));
    if !library.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let own = tempfile::tempdir_in(&folder).unwrap();
        let temporary = own.path().join(name);
        compile(&emulation.join(source), &temporary);
        // Another process may have been faster: its library is as good, and it may have it open, so its file
        // must stay the one of this name.
        match std::fs::hard_link(&temporary, &library) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            linked => linked.unwrap(),
        }
    }
    library
}

/// The file's name is the library's own, by which the loader finds it again.
fn compile(source: &Path, library: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let folder = concat!("-DEMULATION_FOLDER=\"", env!("CARGO_MANIFEST_DIR"), "/cuda\"");
    let output = Command::new(compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"])
        .arg(format!("-Wl,-soname,{}", library.file_name().unwrap().display()))
        .args([folder, "-o"])
        .args([library, source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
