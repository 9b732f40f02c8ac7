//! A machine with a driver and a compiler of our own: `libcuda.cpp` and `libnvrtc.cpp` beside the
//! emulation, compiled once, opened as NVIDIA's would be.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cuda::nvidia::Places;

/// A folder with libraries, and what they do.
pub(super) struct Machine {
    folder: TempDir,
}

/// The libraries by the names under which a loader looks for them.
const LIBRARIES: [(&str, &str); 2] =
    [("libcuda.so.1", "libcuda.cpp"), ("libnvrtc.so.13", "libnvrtc.cpp")];

impl Machine {
    /// A machine whose `behaviour` libcuda.cpp explains.
    pub(super) fn new(behaviour: &str) -> Self {
        let machine = Machine { folder: tempfile::tempdir().unwrap() };
        for (name, source) in LIBRARIES {
            // A copy: a library is known by its file, and this one has a log of its own.
            std::fs::copy(compiled(name, source), machine.path(name)).unwrap();
        }
        std::fs::write(machine.path("behaviour"), behaviour).unwrap();
        machine
    }

    /// A machine with this driver, and no compiler.
    pub(super) fn with_driver(text: &str) -> Self {
        let machine = Machine { folder: tempfile::tempdir().unwrap() };
        std::fs::write(machine.path("driver.c"), text).unwrap();
        compile(&machine.path("driver.c"), &machine.path("libcuda.so.1"));
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
        let [_, (name, source)] = LIBRARIES;
        Places { cache: Some(compiled(name, source).with_extension("cubins")), ..self.places() }
    }

    pub(super) fn without_compiler(self) -> Self {
        std::fs::remove_file(self.path("libnvrtc.so.13")).unwrap();
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

/// The library, compiled unless one of the same sources is there.
fn compiled(name: &str, source: &str) -> PathBuf {
    let emulation = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/emulation"));
    let mut hasher = blake3::Hasher::new();
    for file in [source, "emulate.h", "hopper.h"] {
        hasher.update(&std::fs::read(emulation.join(file)).unwrap());
    }
    hasher.update(emulation.as_os_str().as_encoded_bytes());
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().join("emulated-kernels");
    let library = folder.join(format!("{}-{name}", hasher.finalize().to_hex()));
    if !library.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let temporary = folder.join(format!("{name}.{}", std::process::id()));
        compile(&emulation.join(source), &temporary);
        // Another process may have been faster: its library is as good.
        std::fs::rename(&temporary, &library).unwrap();
    }
    library
}

fn compile(source: &Path, library: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let folder = concat!("-DEMULATION_FOLDER=\"", env!("CARGO_MANIFEST_DIR"), "/cuda\"");
    let output = Command::new(compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"])
        .args([folder, "-o"])
        .args([library, source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
