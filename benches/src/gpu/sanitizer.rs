//! NVIDIA's checker of memory, races and barriers over the suite's own parts at tiny sizes.
//!
//! A part runs in a process below the checker's. What the checker says goes to a file, of which the
//! errors are counted and the first ones told. A machine without it says that it was not found.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use pagoda_kernels::cuda::suite::{Check, Finding, Note};

use super::child::{self, Outcome};
use super::part::Task;

/// A tool of the checker, and the parts that it looks at: those whose kernels can break its rules.
/// Not `initcheck`: all memory is cleared when it is allocated, so that it would find nothing.
const RUNS: [(&str, &[&str]); 3] = [
    (
        "memcheck",
        &["wrappers", "hopper", "ops", "kernels", "formats", "sampling", "experts", "quantized"],
    ),
    ("racecheck", &["wrappers", "hopper", "ops"]),
    ("synccheck", &["hopper", "ops"]),
];

/// A part under the checker takes this long at most.
const TIME: Duration = Duration::from_secs(60);
/// What the checker ends with if it found anything.
const FOUND: &str = "86";

pub(super) fn run(task: &Task<'_>) -> Result<bool> {
    const WHAT: &str = "compute-sanitizer";
    if task.settings.is_emulated() {
        task.note(Note::not_measured(WHAT, "the emulation has checks of its own"))?;
        return Ok(true);
    }
    let Some(program) = find() else {
        let why = "it was not found, on PATH or in a toolkit";
        task.note(Note::not_measured(WHAT, why))?;
        return Ok(true);
    };
    let folder = tempfile::tempdir()?;
    for (tool, parts) in RUNS {
        for part in parts {
            if !(task.keeps_going)() {
                return Ok(false);
            }
            let log = folder.path().join(format!("{tool}-{part}"));
            let time = TIME.min(task.left());
            let outcome =
                child::run(command(task, &program, (tool, part), &log, time)?, time, &mut |_| ())?;
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let what = format!("{tool} over {part}");
            match judge(&what, &text, &outcome) {
                Ok(check) => {
                    let right = check.num_wrong == 0;
                    (task.say)(serde_json::to_value(Finding::Check(check))?, right)?;
                }
                Err(note) => task.note(note)?,
            }
        }
    }
    Ok(true)
}

/// The checker with a part of this program below it, ended with all its processes when time is up.
fn command(
    task: &Task<'_>,
    program: &Path,
    (tool, part): (&str, &str),
    log: &Path,
    time: Duration,
) -> Result<Command> {
    let seconds = time.as_secs().max(2);
    let mut command = Command::new("timeout");
    command.args(["-k", "2", &(seconds - 1).to_string()]).arg(program);
    command.args(["--tool", tool, "--error-exitcode", FOUND, "--print-limit", "20", "--log-file"]);
    command.arg(log).arg(std::env::current_exe()?);
    command.args(["--child", part, "--device", &task.settings.device, "--tiny"]);
    command.args(["--seed", &task.settings.seed.to_string()]);
    command.args(["--budget-s", &(seconds / 2).to_string()]);
    Ok(command)
}

/// What a log of the checker says; a note where it could not check.
fn judge(what: &str, log: &str, outcome: &Outcome) -> Result<Check, Note> {
    let lines = || log.lines().map(|line| line.trim_start_matches('=').trim());
    // Of races: "RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"; a warning may be none.
    let of = |line: &str| match line.strip_prefix("RACECHECK SUMMARY: ") {
        Some(races) => Some(races.split_once('(').map_or(races, |(_, counts)| counts).to_owned()),
        None => line.strip_prefix("ERROR SUMMARY: ").map(str::to_owned),
    };
    let summary = lines().find_map(of);
    let summary = summary.and_then(|text| text.split_whitespace().next()?.parse::<usize>().ok());
    let refusal = lines().find(|line| line.contains("not supported") || line.contains("Unable to"));
    let Some(errors) = summary.filter(|_| refusal.is_none()) else {
        let why = refusal.map(str::to_owned).or_else(|| outcome.error.clone());
        return Err(Note::not_measured(what, why.unwrap_or_else(|| "it says nothing".into())));
    };
    let told = lines().filter(|line| !line.is_empty() && !line.starts_with("COMPUTE-SANITIZER"));
    let mut wrong: Vec<String> =
        told.take(if errors > 0 { 12 } else { 0 }).map(str::to_owned).collect();
    let mut num_wrong = errors;
    // What the part itself found, but for time: under the checker it may have too little.
    if errors == 0 && !outcome.right && outcome.error.is_none() {
        (num_wrong, wrong) = (1, vec!["the part found wrong results".into()]);
    }
    Ok(Check { what: what.into(), cases: outcome.findings.len().max(1), num_wrong, wrong })
}

/// On PATH, or where toolkits put it.
fn find() -> Option<PathBuf> {
    const NAME: &str = "compute-sanitizer";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os);
    let mut roots: Vec<PathBuf> = toolkits.map(PathBuf::from).collect();
    roots.push("/usr/local/cuda".into());
    for parent in [["usr", "local"], ["opt", "nvidia"]] {
        let parent = Path::new("/").join(parent[0]).join(parent[1]);
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        roots.extend(entries.map(|entry| entry.path()));
    }
    for root in roots {
        folders.extend([root.join("bin"), root.join(NAME), root]);
    }
    folders.into_iter().map(|folder| folder.join(NAME)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(right: bool) -> Outcome {
        let findings = vec![serde_json::json!({})];
        Outcome { findings, right, ended: true, error: None, case: None }
    }

    const CLEAN: &str = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n";
    const DIRTY: &str = "========= COMPUTE-SANITIZER\n\
        ========= Invalid __global__ write of size 4 bytes\n\
        =========     at norm_f32+0x100 in norm.cu\n\
        ========= ERROR SUMMARY: 3 errors\n";
    const RACES: &str = "========= COMPUTE-SANITIZER\n\
        ========= Error: Race reported between Write access at a and Read access at b\n\
        ========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n";

    #[test]
    fn errors_are_counted_and_told() {
        let clean = judge("memcheck", CLEAN, &outcome(true)).unwrap();
        assert_eq!((clean.num_wrong, clean.wrong.len(), clean.cases), (0, 0, 1));
        let dirty = judge("memcheck", DIRTY, &outcome(true)).unwrap();
        assert!(dirty.num_wrong == 3 && dirty.wrong[0].starts_with("Invalid __global__"));
        let races = judge("racecheck", RACES, &outcome(true)).unwrap();
        assert!(races.num_wrong == 1 && races.wrong[0].contains("Race reported"));
        let warned = RACES.replace("(1 error, 1 warning)", "(0 errors, 2 warnings)");
        assert_eq!(judge("racecheck", &warned, &outcome(true)).unwrap().num_wrong, 0);
        let none = RACES.replace("2 hazards displayed (1 error, 1 warning)", "0 hazards displayed");
        assert_eq!(judge("racecheck", &none, &outcome(true)).unwrap().num_wrong, 0);
        assert_eq!(judge("memcheck", CLEAN, &outcome(false)).unwrap().num_wrong, 1);
    }

    #[test]
    fn a_checker_that_cannot_check_is_no_fault() {
        let refused = "========= COMPUTE-SANITIZER\n========= Error: Device not supported\n";
        let note = judge("memcheck", refused, &outcome(true)).unwrap_err();
        assert!(note.text.contains("Device not supported"), "{note:?}");
        let failed = Outcome { error: Some("ended with 1".into()), ..outcome(false) };
        assert!(judge("memcheck", "", &failed).unwrap_err().text.contains("ended with 1"));
    }
}
