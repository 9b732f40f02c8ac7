//! The lines of results: one a part, appended and on disk when the part ends.
//!
//! A line says what ran, where, how, and everything that was found. A file whose last line was cut off
//! by a stop is read up to there.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::arguments::Settings;
use super::machine::Machine;

/// What one run of a part left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its name.
    pub part: String,
    /// What the program was built from.
    pub commit: String,
    /// Files and folders that the findings speak of: a line is old when one of them has changed since.
    pub code: Vec<String>,
    /// Where it ran.
    pub machine: Machine,
    /// What it was asked.
    pub settings: Settings,
    /// Seconds since 1970 when it ended.
    pub at_unix_s: u64,
    /// How long it took.
    pub seconds: f64,
    /// Whether it came to its end, within the budget and without an error.
    pub ended: bool,
    /// Whether nothing that it found is wrong.
    pub right: bool,
    /// Why it did not end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Comparisons, and figures with median, least, most and rounds.
    pub findings: Vec<Value>,
}

impl Line {
    /// Whether a part that has this line need not run again at `commit` on `gpu` with `settings`.
    pub fn settles(&self, commit: &str, gpu: &str, settings: &Settings) -> bool {
        let same = self.commit == commit && self.machine.gpu == gpu && self.settings == *settings;
        // What may have been built from anything settles nothing.
        same && self.ended && self.right && commit != "unknown" && !commit.ends_with('+')
    }
}

/// Reads all whole lines; none where there is no file.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))
    };
    whole.lines().enumerate().map(parse).collect()
}

/// Appends `line`, on disk when this returns. What a stop left of a line is cut off first.
pub fn append(path: &Path, line: &Line) -> Result<()> {
    let open = || -> std::io::Result<File> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    };
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let written = open().and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn line(part: &str) -> Line {
        Line {
            part: part.into(),
            commit: "abc".into(),
            code: vec!["kernels/cuda".into()],
            machine: Machine { gpu: "emulated".into(), before: None, after: None },
            settings: Settings { device: "emulated".into(), seed: 1, tiny: false },
            at_unix_s: 1,
            seconds: 2.0,
            ended: true,
            right: true,
            error: None,
            findings: vec![serde_json::json!({ "check": { "what": "x" } })],
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_replaced_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        append(&path, &line("a")).unwrap();
        append(&path, &line("b")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        // Every place where a stop may cut the second line, and its end.
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for cut in [first, first + 1, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path).unwrap(), [line("a")]);
            append(&path, &line("c")).unwrap();
            assert_eq!(read(&path).unwrap(), [line("a"), line("c")]);
        }
    }

    #[test]
    fn a_line_that_is_damaged_is_told_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        append(&path, &line("a")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap() + "{\"part\": 1}\n";
        std::fs::write(&path, text).unwrap();
        assert!(format!("{:?}", read(&path)).contains("line 2"));
    }

    #[test]
    fn only_what_ended_right_in_the_same_way_is_settled() {
        let settings = Settings { device: "emulated".into(), seed: 1, tiny: false };
        let settles = |line: &Line| line.settles("abc", "emulated", &settings);
        assert!(settles(&line("a")));
        let others = [
            Line { ended: false, ..line("a") },
            Line { right: false, ..line("a") },
            Line { commit: "abd".into(), ..line("a") },
            Line { settings: Settings { seed: 2, ..settings.clone() }, ..line("a") },
            Line {
                machine: Machine { gpu: "NVIDIA H200".into(), before: None, after: None },
                ..line("a")
            },
        ];
        for other in others {
            assert!(!settles(&other), "{other:?}");
        }
        for commit in ["unknown", "abc+"] {
            let line = Line { commit: commit.into(), ..line("a") };
            assert!(!line.settles(commit, "emulated", &settings));
        }
    }
}
