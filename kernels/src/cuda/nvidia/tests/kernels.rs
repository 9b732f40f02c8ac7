//! Where code comes from: compiled, kept, damaged, built ahead of time, missing.

use super::machine::Machine;
use super::open_with;
use crate::cuda::nvidia::arch::Arch;
use crate::cuda::nvidia::built_file::BuiltFile;
use crate::cuda::nvidia::findings::Findings;
use crate::cuda::nvidia::nvrtc::Nvrtc;
use crate::cuda::source::{GATHER, NORM, Source};
use crate::error::KernelError;

const SOURCES: [&Source; 2] = [&NORM, &GATHER];

/// How many sources were built before, kept, and compiled.
fn ways(machine: &Machine, kernels: Option<&str>) -> (usize, usize, usize) {
    let mut places = machine.places();
    places.kernels = kernels.map(|name| machine.path(name));
    let (_, report) = open_with(&places, &SOURCES).unwrap();
    assert_eq!((report.arch.to_string().as_str(), &report.not_kept), ("sm_90a", &None));
    (report.built, report.cached, report.compiled)
}

#[test]
fn code_is_compiled_once_and_again_when_it_is_damaged() {
    let machine = Machine::new("");
    assert_eq!(ways(&machine, None), (0, 0, 2));
    assert_eq!(ways(&machine, None), (0, 2, 0));
    let kept = std::fs::read_dir(machine.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept.collect();
    assert_eq!(kept.len(), 2);
    let mut bytes = std::fs::read(&kept[0]).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&kept[0], bytes).unwrap();
    assert_eq!(ways(&machine, None), (0, 1, 1));
    assert_eq!(ways(&machine, None), (0, 2, 0));
}

#[test]
fn what_cannot_be_kept_is_told_and_serves() {
    let machine = Machine::new("");
    std::fs::write(machine.path("cache"), "a file").unwrap();
    let (_, report) = open_with(&machine.places(), &[&NORM]).unwrap();
    assert_eq!(report.compiled, 1);
    assert!(report.to_string().contains("not kept for the next start"), "{report}");
}

/// A file with the code of one source.
fn build(machine: &Machine, arch: &str) {
    let compiler = Nvrtc::find(&machine.places(), None).unwrap();
    let arch: Arch = arch.parse().unwrap();
    let mut built = BuiltFile::default();
    built.add(&NORM, arch, compiler.compile(&NORM, arch).unwrap());
    std::fs::write(machine.path("built"), built.to_bytes()).unwrap();
}

#[test]
fn a_built_file_is_enough_and_the_compiler_makes_what_it_lacks() {
    let machine = Machine::new("");
    build(&machine, "sm_90a");
    assert_eq!(ways(&machine, Some("built")), (1, 0, 1));
    let machine = machine.without_compiler();
    let mut places = machine.places();
    places.kernels = Some(machine.path("built"));
    let (_, report) = open_with(&places, &[&NORM]).unwrap();
    assert_eq!((report.built, report.compiled), (1, 0));
    assert!(report.to_string().starts_with("1 built before for sm_90a, ready in "), "{report}");
}

/// Why there are no kernels.
fn refusal(machine: &Machine, kernels: Option<&str>, sources: &[&'static Source]) -> String {
    let mut places = machine.places();
    places.kernels = kernels.map(|name| machine.path(name));
    match open_with(&places, sources) {
        Err(KernelError::Unsupported(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_code_and_compiler_a_person_learns_what_to_do() {
    let machine = Machine::new("").without_compiler();
    // For another card: it is not looked into.
    let mut built = BuiltFile::default();
    built.add(&NORM, "sm_80".parse().unwrap(), vec![1]);
    std::fs::write(machine.path("built"), built.to_bytes()).unwrap();
    let reason = refusal(&machine, None, &[&NORM]);
    for part in
        ["no kernels for sm_90a", "libnvrtc.so.13 was not found", "pip install", "PAGODA_CUDA_LIB"]
    {
        assert!(reason.contains(part), "{reason}");
    }
    let reason = refusal(&machine, Some("built"), &[&NORM]);
    assert!(reason.contains("built is for sm_80, and NVRTC"), "{reason}");
    let reason = refusal(&machine, Some("nowhere"), &[&NORM]);
    assert!(reason.contains("cannot open") && reason.contains("nowhere"), "{reason}");
    std::fs::write(machine.path("built"), "PGDKERN1 and nonsense").unwrap();
    let reason = refusal(&machine, Some("built"), &[&NORM]);
    assert!(reason.contains("is damaged"), "{reason}");
}

static WRONG: Source =
    Source { name: "wrong.cu", text: "#include \"prelude.cuh\"\nu32 f() { return nothing; }\n" };

#[test]
fn a_source_that_does_not_compile_is_told_with_the_compilers_words() {
    let reason = refusal(&Machine::new(""), None, &[&WRONG]);
    for part in ["wrong.cu does not compile for sm_90a", "NVRTC_ERROR_COMPILATION", "nothing"] {
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn a_compiler_newer_than_the_driver_is_passed_over() {
    let machine = Machine::new("version 12080");
    let reason = refusal(&machine, None, &[&NORM]);
    assert!(reason.contains("libnvrtc.so.12 was not found"), "{reason}");
}

#[test]
fn findings_are_those_of_the_machine() {
    let machine = Machine::new("gpus 2\nmemory 1000000");
    build(&machine, "sm_80");
    let mut places = machine.places();
    places.kernels = Some(machine.path("built"));
    open_with(&machine.places(), &[&GATHER]).unwrap();
    let found = Findings::look(&places);
    assert_eq!(found.driver.unwrap().version, "13.0");
    assert_eq!(found.compiler.unwrap().file, machine.path("libnvrtc.so.13"));
    let gpus: Vec<_> = found
        .gpus
        .iter()
        .map(|(gpu, memory)| (gpu.name.as_str(), gpu.capability, memory.clone().unwrap().free))
        .collect();
    assert_eq!(gpus, [("Emulated H200", (9, 0), 1_000_000), ("Emulated H201", (9, 0), 1_000_000)]);
    assert_eq!(found.kernels.unwrap().unwrap(), ["sm_80".parse().unwrap()]);
    assert_eq!(found.cache.unwrap().files, 1);
    let products = found.cublaslt.unwrap();
    assert_eq!(
        (products.version.as_str(), products.file),
        ("13.0.1", machine.path("libcublasLt.so.13"))
    );
}

#[test]
fn findings_say_what_is_not_there() {
    let machine = Machine::new("gpus 0").without_compiler().without_products();
    let none = Findings::look(&machine.places());
    assert!(none.driver.unwrap_err().contains("sees no GPU"));
    assert!(none.cublaslt.unwrap_err().contains("libcublasLt.so.13 was not found"));
    assert!(none.gpus.is_empty() && none.compiler.unwrap_err().contains("was not found"));
}
