//! What there is on this machine to run on a GPU with: for `pagoda doctor`.
//!
//! Looks and tells; changes nothing and decides nothing.

use std::path::{Path, PathBuf};

use super::arch::Arch;
use super::built_file::BuiltFile;
use super::cublaslt::CublasLt;
use super::driver::Nvidia;
use super::nvrtc::Nvrtc;
use super::places::Places;
use super::system::{Gpu, System, version_name};
use crate::cuda::driver::Driver;
use crate::device::DeviceMemory;

/// What was found. What was not is a reason in words.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The driver.
    pub driver: Result<Found, String>,
    /// Its GPUs, each with its memory if it can be taken.
    pub gpus: Vec<(Gpu, Result<DeviceMemory, String>)>,
    /// NVRTC, of a version that the driver takes code from.
    pub compiler: Result<Found, String>,
    /// cuBLASLt, of a version that the driver runs.
    pub cublaslt: Result<Found, String>,
    /// Architectures in the file of `--kernels`, if one was named.
    pub kernels: Option<Result<Vec<Arch>, String>>,
    /// The cubin cache, if there is a place for one.
    pub cache: Option<CacheFound>,
}

/// A library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its file.
    pub file: PathBuf,
    /// Of CUDA; of cuBLASLt its own.
    pub version: String,
}

/// The folder of compiled kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFound {
    /// Where.
    pub folder: PathBuf,
    /// Kept files,
    pub files: usize,
    /// and their bytes.
    pub bytes: u64,
}

impl Findings {
    /// Looks. Takes each GPU for a moment, to ask for its free memory.
    pub fn look(places: &Places) -> Self {
        let system = System::open(places).map_err(|why| why.to_string());
        let found = |system: &System| Found {
            file: system.file.clone(),
            version: version_name(system.version),
        };
        let major_max = system.as_ref().ok().map(|system| system.version / 1000);
        let compiler = Nvrtc::find(places, major_max);
        Findings {
            driver: system.as_ref().map(found).map_err(String::clone),
            gpus: system.as_ref().map(gpus).unwrap_or_default(),
            compiler: compiler.map(|compiler| {
                let (major, minor) = compiler.version;
                Found { file: compiler.file, version: format!("{major}.{minor}") }
            }),
            cublaslt: CublasLt::find(places, major_max).map(|library| {
                let version = library.version_name();
                Found { file: library.file, version }
            }),
            kernels: places.kernels.as_deref().map(|file| Ok(BuiltFile::read(file)?.archs())),
            cache: places.cache.as_deref().map(cache),
        }
    }
}

fn gpus(system: &System) -> Vec<(Gpu, Result<DeviceMemory, String>)> {
    let memory = |gpu: &Gpu| {
        let nvidia = Nvidia::open(system, gpu.index).map_err(|why| why.to_string())?;
        let memory = nvidia.memory().map_err(|why| why.to_string())?;
        memory.ok_or_else(|| "the driver does not tell its memory".to_owned())
    };
    let gpus = system.gpus().unwrap_or_default().into_iter();
    gpus.map(|gpu| (gpu.clone(), memory(&gpu))).collect()
}

fn cache(folder: &Path) -> CacheFound {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_kept = |path: &PathBuf| path.extension().is_some_and(|end| end == "cubin");
    let kept = entries.map(|entry| entry.path()).filter(is_kept);
    let sizes: Vec<u64> = kept.filter_map(|path| Some(path.metadata().ok()?.len())).collect();
    CacheFound { folder: folder.to_owned(), files: sizes.len(), bytes: sizes.iter().sum() }
}
