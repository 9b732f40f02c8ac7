//! The program `gpu` as a person runs it, on the emulation: every part, a stop, a second run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use pagoda_benches::gpu::line::{self, Line};
use pagoda_benches::gpu::part::PARTS;

fn command(arguments: &[&str], results: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu"));
    command.args(arguments).args(["--commit", "abc", "--budget-s", "800"]);
    command.arg("--resume").arg(results);
    command
}

fn gpu(arguments: &[&str], results: &Path) -> Output {
    command(arguments, results).output().unwrap()
}

#[test]
fn every_part_runs_and_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let output = gpu(&["--device", "emulated"], &results);
    assert!(output.status.success(), "{output:?}");
    let lines = line::read(&results).unwrap();
    let names: Vec<&str> = lines.iter().map(|line| line.part.as_str()).collect();
    assert_eq!(names, PARTS.each_ref().map(|part| part.name));
    for line in &lines {
        assert!(line.ended && line.right && line.error.is_none(), "{line:?}");
        assert!(!line.findings.is_empty() && line.machine.gpu == "emulated", "{line:?}");
    }
    let output = gpu(&["--device", "emulated"], &results);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(line::read(&results).unwrap().len(), lines.len());
    // Another seed is another run.
    let output = gpu(&["--device", "emulated", "--seed", "2", "--parts", "ceilings"], &results);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(line::read(&results).unwrap().len(), lines.len() + 1);
}

#[test]
fn what_was_stopped_half_way_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let names = ["wrappers", "costs", "ceilings"];
    let asked = ["--device", "emulated", "--parts", &names.join(",")];
    let mut process = command(&asked, &results).stdout(Stdio::null()).spawn().unwrap();
    while line::read(&results).unwrap().is_empty() && process.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let before = line::read(&results).unwrap();
    assert!(!before.is_empty());
    let output = gpu(&asked, &results);
    assert!(output.status.success(), "{output:?}");
    let lines = line::read(&results).unwrap();
    assert_eq!(lines[..before.len()], before);
    let parts: Vec<&str> = lines.iter().map(|line| line.part.as_str()).collect();
    assert_eq!(parts, names);
}

#[test]
fn a_device_that_is_not_there_is_a_line_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let output = gpu(&["--device", "cuda:99", "--parts", "wrappers"], &results);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = line::read(&results).unwrap();
    let [Line { part, ended: false, right: false, error: Some(error), .. }] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(part == "wrappers" && error.contains("cuda:99"), "{error}");
}

#[test]
fn parts_are_listed_and_unknown_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let listing = String::from_utf8(gpu(&["--list"], &results).stdout).unwrap();
    for part in &PARTS {
        assert!(listing.contains(part.name), "{listing}");
    }
    assert!(!gpu(&["--parts", "nothing"], &results).status.success());
    assert!(!results.exists());
}

#[test]
fn what_parts_speak_of_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for part in &PARTS {
        for path in part.code {
            assert!(root.join(path).exists(), "{}: {path}", part.name);
        }
    }
}
