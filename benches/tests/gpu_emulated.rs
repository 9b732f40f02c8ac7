//! The program `gpu` as a person runs it, on the emulation: every part, a stop, a second run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use pagoda_benches::gpu::child::Message;
use pagoda_benches::gpu::line::{self, Line};
use pagoda_benches::gpu::part::PARTS;
use pagoda_kernels::cuda::suite::{Size, peer_tasks};

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
    assert_scripts_know(&lines);
    let output = gpu(&["--device", "emulated"], &results);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(line::read(&results).unwrap().len(), lines.len());
    // Another seed is another run.
    let output = gpu(&["--device", "emulated", "--seed", "2", "--parts", "ceilings"], &results);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(line::read(&results).unwrap().len(), lines.len() + 1);
}

/// A peer as it would be run: it reads what the suite measured, and says figures under the same names.
const PEER: &str = "
import peer
asked = peer.Peer()
product, attention = asked.of('product')[0], asked.of('attention')[0]
peer.note('a peer', 'told')
peer.figure(product['what'], 'us', [float(product['rows'] * product['n'] * product['k'])])
shape = [attention[key] for key in ('seqs', 'keys', 'rows', 'num_q', 'num_kv', 'head_dim')]
peer.figure(attention['what'] + ': a way', 'us', [float(sum(shape))])
peer.end(True)
";

/// Draws the table of the lines in a folder.
const TABLE: &str = "
import pathlib, sys, gpu_table
lines = gpu_table.lines_of(pathlib.Path(sys.argv[1]))
print(gpu_table.table(lines, gpu_table.ROOT), gpu_table.beside_peers(lines), sep='\\n')
";

/// What a script in Python says, with the modules of a folder of benches.
fn python(modules: &str, script: &str, arguments: &[&Path]) -> String {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join(modules);
    let mut command = Command::new("python3");
    command.args(["-B", "-c", script]).args(arguments).arg("600").env("PYTHONPATH", modules);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the scripts beside the suite understand today's lines and tasks, and are understood.
fn assert_scripts_know(lines: &[Line]) {
    let folder = tempfile::tempdir().unwrap();
    let tasks = folder.path().join("tasks.json");
    std::fs::write(&tasks, serde_json::to_vec(&peer_tasks(Size::Tiny)).unwrap()).unwrap();
    let said = python("peers", PEER, &[&tasks]);
    let said: Vec<Message> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said.last(), Some(&Message::End { all: true }));
    let findings: Vec<_> = said
        .into_iter()
        .filter_map(|message| match message {
            Message::Finding { what, right: true } => Some(what),
            _ => None,
        })
        .collect();
    assert_eq!(findings.len(), 3);
    for line in lines {
        // As if a card had run it.
        let mut line = line.clone();
        line.machine.gpu = "a card".into();
        if line.part == "peer-cublaslt" {
            line.findings.clone_from(&findings);
        }
        line::append(&folder.path().join("gpu-x.jsonl"), &line).unwrap();
    }
    let table = python(".", TABLE, &[folder.path()]);
    for part in &PARTS {
        assert!(table.contains(&format!("| {} | a card | `abc`", part.name)), "{table}");
    }
    assert!(!table.contains("failed") && !table.contains("wrong"), "{table}");
    let beside: Vec<&str> = table.lines().filter(|row| row.starts_with("| tiny ")).collect();
    assert_eq!(beside.len(), 2, "{table}");
    assert!(beside[0].contains("| cuBLASLt |") && beside[1].contains("| a way |"), "{table}");
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
