//! `pagoda doctor`: what this machine has to run models on, what it lacks, and what to do about it.
//!
//! Words for a person, from what was found. Loads no model.

use std::fmt::{Display, Write};
use std::path::Path;

use pagoda_kernels::cpu::isa::Isa;
use pagoda_kernels::cuda::nvidia::{Arch, CacheFound, Findings, Found, Gpu, Places};
use pagoda_kernels::device::DeviceMemory;

use crate::config::DeviceSettings;
use crate::memory::{MachineMemory, gib};
use crate::serve::device::Chosen;

/// Describes this machine.
pub fn describe(kernels: Option<&Path>) -> String {
    let findings = Findings::look(&Places::of_this_machine(kernels.map(Path::to_owned)));
    report(&findings, kernels)
}

/// Takes the device that `settings` name as a start would, kernels and all. Gives a line that says
/// what it is, or why it cannot be used.
pub fn try_device(settings: &DeviceSettings) -> Result<String, String> {
    match Chosen::open(settings).map_err(|error| error.to_string())? {
        Chosen::Cpu { instead: None } => Ok("the CPU can be used".to_owned()),
        Chosen::Cpu { instead: Some(why) } => Ok(format!("the CPU can be used; {why}")),
        Chosen::Gpu(device, report) => {
            let name = pagoda_kernels::device::Device::name(&device);
            Ok(format!("{name} can be used: kernels {report}"))
        }
    }
}

fn report(findings: &Findings, kernels: Option<&Path>) -> String {
    let mut lines = Lines(String::new());
    let Findings { driver, gpus, compiler, cublaslt, cache, .. } = findings;
    lines.add("driver", &found(driver, "CUDA "));
    for (gpu, memory) in gpus {
        lines.add(&format!("GPU {}", gpu.index), &describe_gpu(gpu, memory));
    }
    lines.add("NVRTC", &found(compiler, ""));
    let use_of_it = match cublaslt {
        Ok(_) => "takes products of many rows where it is faster",
        Err(_) => "not needed: products are kernels of our own",
    };
    let cublaslt = format!("{} ({use_of_it})", found(cublaslt, ""));
    lines.add("cuBLASLt", &cublaslt);
    lines.add("kernels", &kernel_file(findings, kernels));
    lines.add("cubin cache", &describe_cache(cache.as_ref()));
    lines.add("CPU", &cpu());
    lines.0.push('\n');
    lines.0.push_str(&advice(findings));
    lines.0
}

/// One line for each thing that was looked for.
struct Lines(String);

impl Lines {
    fn add(&mut self, what: &str, is: &dyn Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{what:<12} {is}");
    }
}

fn found(found: &Result<Found, String>, of: &str) -> String {
    match found {
        Ok(Found { file, version }) => format!("{of}{version}, {}", file.display()),
        Err(why) => why.clone(),
    }
}

fn describe_gpu(gpu: &Gpu, memory: &Result<DeviceMemory, String>) -> String {
    let Gpu { name, capability: (major, minor), multiprocessors, .. } = gpu;
    let memory = match memory {
        Ok(DeviceMemory { free, total }) => format!("{} free of {}", gib(*free), gib(*total)),
        Err(why) => why.clone(),
    };
    format!("{name}, compute capability {major}.{minor}, {multiprocessors} SMs, {memory}")
}

fn kernel_file(findings: &Findings, kernels: Option<&Path>) -> String {
    let place = kernels.map(|path| path.display().to_string()).unwrap_or_default();
    match &findings.kernels {
        None => "no file is named (--kernels or PAGODA_KERNELS); NVRTC compiles them".to_owned(),
        Some(Err(why)) => why.clone(),
        Some(Ok(archs)) => {
            let names: Vec<String> = archs.iter().map(Arch::to_string).collect();
            format!("{place} for {}", names.join(" and "))
        }
    }
}

fn describe_cache(cache: Option<&CacheFound>) -> String {
    match cache {
        None => "none: neither XDG_CACHE_HOME nor HOME is set".to_owned(),
        Some(CacheFound { folder, files, bytes }) => {
            format!("{files} files, {} in {}", gib(*bytes), folder.display())
        }
    }
}

fn cpu() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let MachineMemory { limit, available } = MachineMemory::read();
    let isa = Isa::detect().name();
    format!("{isa}, {threads} threads, {} free of {}", gib(available), gib(limit))
}

/// What `pagoda serve` will do here, and what would change it.
fn advice(findings: &Findings) -> String {
    let Findings { driver, gpus, compiler, kernels, .. } = findings;
    let on_cpu = |why: &str| format!("`pagoda serve` runs on the CPU here: {why}.\n");
    if let Err(why) = driver {
        return on_cpu(why);
    }
    let Some((gpu, memory)) = gpus.first() else {
        return on_cpu("the driver shows no GPU that can be described");
    };
    if let Err(why) = gpu.check() {
        return on_cpu(&why.to_string());
    }
    if let Err(why) = memory {
        return on_cpu(why);
    }
    let is_built =
        matches!(kernels, Some(Ok(archs)) if archs.iter().any(|a| a.runs_on(gpu.capability)));
    match compiler {
        _ if is_built => format!("`pagoda serve` takes {} with built kernels.\n", gpu.name),
        Ok(_) => format!("`pagoda serve` takes {} and compiles its kernels once.\n", gpu.name),
        Err(why) => on_cpu(&format!(
            "kernels for {} are missing and {why}. Install NVRTC (the CUDA toolkit, or: pip install \
             nvidia-cuda-nvrtc), name its folder in PAGODA_CUDA_LIB, or give --kernels a file of \
             `pagoda kernels build --arch {}`",
            gpu.name,
            Arch::of(gpu.capability)
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn hopper() -> Gpu {
        Gpu {
            index: 0,
            name: "NVIDIA H200".into(),
            capability: (9, 0),
            memory_bytes: 141 << 30,
            multiprocessors: 132,
            shared_bytes_max: 232_448,
        }
    }

    fn whole() -> Findings {
        let found = |file: &str, version: &str| {
            Ok(Found { file: PathBuf::from(file), version: version.into() })
        };
        Findings {
            driver: found("/lib/libcuda.so.1", "13.0"),
            gpus: vec![(hopper(), Ok(DeviceMemory { free: 140 << 30, total: 141 << 30 }))],
            compiler: found("/lib/libnvrtc.so.13", "13.0"),
            cublaslt: Err("libcublasLt.so.13 was not found".into()),
            kernels: None,
            cache: Some(CacheFound { folder: "/c".into(), files: 9, bytes: 3 << 20 }),
        }
    }

    #[test]
    fn a_machine_with_everything_is_told_so() {
        let text = report(&whole(), None);
        for part in [
            "driver       CUDA 13.0, /lib/libcuda.so.1",
            "NVIDIA H200, compute capability 9.0, 132 SMs, 140.00 GiB free of 141.00 GiB",
            "NVRTC        13.0",
            "9 files, 3.0 MiB in /c",
            "`pagoda serve` takes NVIDIA H200 and compiles its kernels once.",
            Isa::detect().name(),
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let no_driver =
            Findings { driver: Err("no NVIDIA driver: x".into()), gpus: vec![], ..whole() };
        assert!(report(&no_driver, None).contains("on the CPU here: no NVIDIA driver: x."));

        let no_compiler =
            Findings { compiler: Err("libnvrtc.so.13 was not found".into()), ..whole() };
        let text = report(&no_compiler, None);
        assert!(text.contains("pip install nvidia-cuda-nvrtc") && text.contains("--arch sm_90a"));

        let file = Some(Ok(vec!["sm_90a".parse().unwrap()]));
        let built = Findings { kernels: file, ..no_compiler.clone() };
        assert!(report(&built, Some(Path::new("/k.bin"))).contains("takes NVIDIA H200 with built"));
        let file = Some(Ok(vec!["sm_80".parse().unwrap()]));
        let other = Findings { kernels: file, ..no_compiler };
        assert!(
            report(&other, None).contains("on the CPU here: kernels for NVIDIA H200 are missing")
        );

        let old = Gpu { capability: (7, 5), ..hopper() };
        let memory = Ok(DeviceMemory { free: 1, total: 1 });
        let old = Findings { gpus: vec![(old, memory)], ..whole() };
        assert!(
            report(&old, None).contains("needs 8.0") || report(&old, None).contains("need 8.0")
        );

        let busy =
            Findings { gpus: vec![(hopper(), Err("GPU 0 cannot be taken".into()))], ..whole() };
        assert!(report(&busy, None).contains("on the CPU here: GPU 0 cannot be taken"));
    }
}
