//! Code for a card: from a built file, from the cache, or compiled now.
//!
//! All sources are made ready before anything is served, several at a time; nothing is compiled
//! later. What is compiled for this machine is kept in the cache.

use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::arch::Arch;
use super::built_file::BuiltFile;
use super::cubin_cache::CubinCache;
use super::key::Key;
use super::nvrtc::Nvrtc;
use super::places::Places;
use crate::cuda::source::{SOURCES, Source};
use crate::error::KernelError;

/// Compiled code of a source.
pub(crate) struct Cubin {
    pub(crate) source: &'static Source,
    pub(crate) code: Vec<u8>,
}

/// Where the code of a card's kernels came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelReport {
    /// What the card is.
    pub arch: Arch,
    /// Sources whose code was in the file of `--kernels`,
    pub built: usize,
    /// in the cache,
    pub cached: usize,
    /// and compiled now.
    pub compiled: usize,
    /// How long all that took.
    pub took: Duration,
    /// Why the next start will compile again.
    pub not_kept: Option<String>,
}

impl fmt::Display for KernelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KernelReport { arch, built, cached, compiled, took, not_kept } = self;
        let parts =
            [(*built, "built before"), (*cached, "from the cache"), (*compiled, "compiled")];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<_> = parts.map(|(count, how)| format!("{count} {how}")).collect();
        let seconds = took.as_secs_f32();
        write!(f, "{} for {arch}, ready in {seconds:.1} s", parts.join(", "))?;
        match not_kept {
            Some(why) => write!(f, " (not kept for the next start: {why})"),
            None => Ok(()),
        }
    }
}

/// What code is made ready for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Card {
    /// Compute capability.
    pub(crate) capability: (u32, u32),
    /// The major version of CUDA whose code the driver still takes.
    pub(crate) cuda_major: u32,
}

/// The code of `sources` for `card`. Tells in a line if minutes may go by.
pub(crate) fn prepare(
    sources: &[&'static Source],
    Card { capability, cuda_major }: Card,
    places: &Places,
    told: &dyn Fn(&str),
) -> Result<(Vec<Cubin>, KernelReport), KernelError> {
    let began = Instant::now();
    let arch = Arch::of(capability);
    let (mut report, mut cubins, mut missing) = (report(arch), Vec::new(), Vec::new());
    let file = match &places.kernels {
        Some(path) => BuiltFile::read(path).map_err(KernelError::Unsupported)?,
        None => BuiltFile::default(),
    };
    for &source in sources {
        match file.code(source, capability) {
            Some(code) => cubins.push(Cubin { source, code: code.to_vec() }),
            None => missing.push(source),
        }
    }
    report.built = cubins.len();
    if !missing.is_empty() {
        let compiler = Nvrtc::find(places, Some(cuda_major))
            .map_err(|why| no_compiler(arch, places, &file, &why))?;
        let (kept, jobs) = look_up(&compiler, &missing, places, arch);
        report.cached = kept.len();
        report.compiled = jobs.len();
        cubins.extend(kept);
        if !jobs.is_empty() {
            let (major, minor) = compiler.version;
            told(&format!("compiling {} kernel files by NVRTC {major}.{minor}", jobs.len()));
            let (made, not_kept) = compile_and_keep(&compiler, &jobs, places)?;
            report.not_kept = not_kept;
            cubins.extend(made);
        }
    }
    report.took = began.elapsed();
    Ok((cubins, report))
}

fn report(arch: Arch) -> KernelReport {
    KernelReport { arch, built: 0, cached: 0, compiled: 0, took: Duration::ZERO, not_kept: None }
}

/// A source to be compiled.
type Job = (&'static Source, Arch);

/// What the cache has, and what is to be compiled.
fn look_up(
    compiler: &Nvrtc,
    missing: &[&'static Source],
    places: &Places,
    arch: Arch,
) -> (Vec<Cubin>, Vec<Job>) {
    let cache = places.cache.as_deref().map(CubinCache::new);
    let (mut kept, mut jobs) = (Vec::new(), Vec::new());
    for &source in missing {
        let key = Key::cached(source, arch, compiler.version);
        match cache.as_ref().and_then(|cache| cache.read(key)) {
            Some(code) => kept.push(Cubin { source, code }),
            None => jobs.push((source, arch)),
        }
    }
    (kept, jobs)
}

/// Compiles, and says why the code could not be kept.
fn compile_and_keep(
    compiler: &Nvrtc,
    jobs: &[Job],
    places: &Places,
) -> Result<(Vec<Cubin>, Option<String>), KernelError> {
    let cache = places.cache.as_deref().map(CubinCache::new);
    let (mut made, mut not_kept) = (Vec::new(), None);
    for (&(source, arch), code) in jobs.iter().zip(compile(compiler, jobs)?) {
        let key = Key::cached(source, arch, compiler.version);
        let kept = match &cache {
            Some(cache) => cache.write(key, &code).map_err(|why| why.to_string()),
            None => Err("there is neither XDG_CACHE_HOME nor HOME".to_owned()),
        };
        not_kept = kept.err().or(not_kept);
        made.push(Cubin { source, code });
    }
    Ok((made, not_kept))
}

fn no_compiler(arch: Arch, places: &Places, file: &BuiltFile, why: &str) -> KernelError {
    let built = match &places.kernels {
        None => String::new(),
        Some(path) if !file.archs().contains(&arch) => {
            let archs: Vec<String> = file.archs().iter().map(Arch::to_string).collect();
            format!("{} is for {}, and ", path.display(), archs.join(", "))
        }
        Some(path) => {
            format!("{} was built by another version of this program, and ", path.display())
        }
    };
    KernelError::Unsupported(format!(
        "no kernels for {arch}: {built}NVRTC cannot compile them: {why}. Install it (the CUDA \
         toolkit, or: pip install nvidia-cuda-nvrtc), name its folder in PAGODA_CUDA_LIB, or give \
         --kernels a file of `pagoda kernels build --arch {arch}`"
    ))
}

/// What a build took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildReport {
    /// Sources, each for all architectures.
    pub sources: usize,
    /// Bytes of the file.
    pub bytes: usize,
    /// Of the compiler, major and minor.
    pub compiler: (u32, u32),
    /// How long it took.
    pub took: Duration,
}

/// The bytes of a file with all kernels for `archs`. Needs NVRTC, and no GPU.
pub fn build(archs: &[Arch], places: &Places) -> Result<(Vec<u8>, BuildReport), KernelError> {
    build_sources(&SOURCES, archs, places)
}

/// The same with `sources`. What takes longest to compile comes first.
pub(crate) fn build_sources(
    sources: &[&'static Source],
    archs: &[Arch],
    places: &Places,
) -> Result<(Vec<u8>, BuildReport), KernelError> {
    let began = Instant::now();
    let compiler = Nvrtc::find(places, None).map_err(|why| {
        KernelError::Unsupported(format!(
            "NVRTC is needed to compile kernels: {why}. Install it (the CUDA toolkit, or: pip \
             install nvidia-cuda-nvrtc), or name its folder in PAGODA_CUDA_LIB"
        ))
    })?;
    let each =
        |source: &&'static Source| archs.iter().map(|arch| (*source, *arch)).collect::<Vec<_>>();
    // What takes longest comes first, for all architectures.
    let jobs: Vec<Job> = sources.iter().flat_map(each).collect();
    let mut file = BuiltFile::default();
    for ((source, arch), code) in jobs.iter().zip(compile(&compiler, &jobs)?) {
        file.add(source, *arch, code);
    }
    let bytes = file.to_bytes();
    let report = BuildReport {
        sources: sources.len(),
        bytes: bytes.len(),
        compiler: compiler.version,
        took: began.elapsed(),
    };
    Ok((bytes, report))
}

type Compiled = Result<Vec<u8>, KernelError>;

/// Compiles on all cores. What comes back is in the order of `jobs`.
fn compile(compiler: &Nvrtc, jobs: &[Job]) -> Result<Vec<Vec<u8>>, KernelError> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Compiled)>> = Mutex::default();
    let work = || {
        while let Some((index, (source, arch))) = take(jobs, &next) {
            let code = compiler.compile(source, *arch);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, code));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            // Fewer threads compile as well.
            let _ = thread.name("compile".into()).spawn_scoped(scope, work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    if done.len() != jobs.len() {
        return Err(KernelError::Unsupported("cannot start threads that compile".into()));
    }
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, code)| code).collect()
}

fn take<'a, T>(jobs: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, jobs.get(index)?))
}

/// The compiler recurses deeply.
const STACK_BYTES: usize = 32 << 20;
