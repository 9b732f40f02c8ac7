//! Runs parts one after another within a budget, and writes a line when each ends.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde_json::Value;

use super::arguments::Settings;
use super::child::{self, Outcome};
use super::line::{self, Line};
use super::machine::Machine;
use super::part::Part;

/// What parts are run with.
pub struct Conductor<'a> {
    /// Where lines are read and appended.
    pub results: &'a Path,
    /// What the program was built from.
    pub commit: &'a str,
    /// How parts are run.
    pub settings: &'a Settings,
    /// When no part goes on.
    pub deadline: Instant,
    /// The process of a part, which has so much time.
    pub process: &'a dyn Fn(&Part, Duration) -> Command,
    /// For the person who waits.
    pub tell: &'a dyn Fn(&str),
}

/// What became of the parts that were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ended and right, now or before.
    pub right: usize,
    /// Failed, or found something wrong.
    pub wrong: usize,
    /// Had no time, or not enough.
    pub left: usize,
}

/// Between the time at which a part should stop by itself, and that at which it is stopped.
const GRACE: Duration = Duration::from_secs(10);

/// A part that takes so many times what is expected of it hangs,
const PATIENCE: u64 = 3;

/// not counting so many seconds, in which the first part may compile every kernel.
const START_S: u64 = 60;

impl Conductor<'_> {
    /// Runs `parts`, but for those that `results` settle.
    pub fn run(&self, parts: &[&Part]) -> Result<Tally> {
        let gpu = self.settings.gpu();
        let before = line::read(self.results)?;
        let mut tally = Tally::default();
        for part in parts {
            let settles = |line: &Line| {
                line.part == part.name && line.settles(self.commit, &gpu, self.settings)
            };
            if before.iter().any(settles) {
                (self.tell)(&format!("{}: right before, not run again", part.name));
                tally.right += 1;
                continue;
            }
            let time = self.deadline.saturating_duration_since(Instant::now());
            // At tiny sizes the guess for a card means nothing.
            let needed = if self.settings.is_tiny() { 1 } else { part.seconds };
            if time < Duration::from_secs(needed) {
                (self.tell)(&format!("{}: not begun, it needs some {needed} s", part.name));
                tally.left += 1;
                continue;
            }
            let line = self.run_part(part, &gpu, self.time_of(part, time))?;
            line::append(self.results, &line)?;
            (self.tell)(&summary(&line));
            match (line.right, line.ended) {
                (false, _) => tally.wrong += 1,
                (true, true) => tally.right += 1,
                (true, false) => tally.left += 1,
            }
        }
        Ok(tally)
    }

    /// What a part may take of the time that is left: a kernel that hangs must not take that of others.
    fn time_of(&self, part: &Part, left: Duration) -> Duration {
        if self.settings.is_tiny() {
            return left;
        }
        left.min(Duration::from_secs(START_S + PATIENCE * part.seconds))
    }

    fn run_part(&self, part: &Part, gpu: &str, time: Duration) -> Result<Line> {
        let before = self.settings.state();
        let began = Instant::now();
        let process = (self.process)(part, time);
        let Outcome { findings, right, ended, error, .. } =
            child::run(process, time + GRACE, &mut |what| (self.tell)(&told(what)))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Line {
            part: part.name.into(),
            commit: self.commit.into(),
            code: part.code.iter().map(|&path| path.into()).collect(),
            machine: Machine { gpu: gpu.into(), before, after: self.settings.state() },
            settings: self.settings.clone(),
            at_unix_s: now.map_or(0, |now| now.as_secs()),
            seconds: began.elapsed().as_secs_f64(),
            ended,
            right: right && (!ended || !findings.is_empty()),
            error,
            findings,
        })
    }
}

/// A finding for people: figures with their share, comparisons with what is wrong.
fn told(what: &Value) -> String {
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    if let Some(figure) = what.get("figure") {
        let share = match figure["share"].as_f64() {
            Some(share) => format!(", {:.0}% of {}", share * 100.0, text(figure, "of")),
            None => String::new(),
        };
        let (what, unit) = (text(figure, "what"), text(figure, "unit"));
        return format!("  {what}: {:.2} {unit}{share}", number(figure, "median"));
    }
    if let Some(check) = what.get("check") {
        let (what, wrong) = (text(check, "what"), &check["wrong"]);
        let counts = format!("  {what}: {} compared, {} wrong", check["cases"], check["num_wrong"]);
        let first = wrong.get(0).and_then(Value::as_str);
        return first.map_or_else(|| counts.clone(), |first| format!("{counts}: {first}"));
    }
    if let Some(note) = what.get("note") {
        return format!("  {}: {}", text(note, "what"), text(note, "text"));
    }
    format!("  {what}")
}

fn summary(line: &Line) -> String {
    let outcome = match (&line.error, line.right, line.ended) {
        (Some(error), ..) => error.as_str(),
        (None, false, _) => "WRONG",
        (None, true, true) => "right",
        (None, true, false) => "right as far as it came",
    };
    format!("{}: {outcome}, {} findings in {:.1} s", line.part, line.findings.len(), line.seconds)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::part::PARTS;
    use super::*;

    const RIGHT: &str =
        r#"echo '{"finding":{"what":{"n":1},"right":true}}'; echo '{"end":{"all":true}}'"#;

    /// Runs three parts as shell scripts; tells which were begun.
    fn conduct(results: &Path, scripts: [&str; 3], budget_s: u64) -> (Tally, Vec<&'static str>) {
        let begun = RefCell::new(Vec::new());
        let settings = Settings { device: "emulated".into(), seed: 1, tiny: false };
        let process = |part: &Part, _: Duration| {
            let index = PARTS.iter().position(|other| other.name == part.name).unwrap();
            begun.borrow_mut().push(PARTS[index].name);
            let mut command = Command::new("sh");
            command.args(["-c", scripts[index]]);
            command
        };
        let conductor = Conductor {
            results,
            commit: "abc",
            settings: &settings,
            deadline: Instant::now() + Duration::from_secs(budget_s),
            process: &process,
            tell: &|_| (),
        };
        let parts: Vec<&Part> = PARTS.iter().take(3).collect();
        let tally = conductor.run(&parts).unwrap();
        (tally, begun.into_inner())
    }

    #[test]
    fn a_run_goes_on_where_the_last_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("results.jsonl");
        let names: Vec<&str> = PARTS.iter().take(3).map(|part| part.name).collect();
        // The second fails, the third is stopped by the budget before its end.
        let cut = RIGHT.replace("\"all\":true", "\"all\":false");
        let (tally, begun) = conduct(&results, [RIGHT, "exit 3", &cut], 600);
        assert_eq!((tally, begun), (Tally { right: 1, wrong: 1, left: 1 }, names.clone()));
        let (tally, begun) = conduct(&results, [RIGHT; 3], 600);
        assert_eq!((tally, begun), (Tally { right: 3, ..Tally::default() }, names[1..].to_vec()));
        let (tally, begun) = conduct(&results, [RIGHT; 3], 600);
        assert_eq!((tally, begun.len()), (Tally { right: 3, ..Tally::default() }, 0));
        let lines = line::read(&results).unwrap();
        let ended: Vec<_> = lines.iter().map(|line| (line.ended, line.right)).collect();
        let want = [(true, true), (false, false), (false, true), (true, true), (true, true)];
        assert_eq!(ended, want);
    }

    #[test]
    fn a_part_on_a_card_does_not_get_the_time_of_all_others() {
        let settings = Settings { device: "cuda".into(), seed: 1, tiny: false };
        let conductor = Conductor {
            results: Path::new("none"),
            commit: "abc",
            settings: &settings,
            deadline: Instant::now(),
            process: &|_, _| Command::new("true"),
            tell: &|_| (),
        };
        let (lease, little) = (Duration::from_secs(3600), Duration::from_secs(5));
        for part in &PARTS {
            let time = conductor.time_of(part, lease);
            assert!(time < lease && time > Duration::from_secs(part.seconds), "{}", part.name);
            assert_eq!(conductor.time_of(part, little), little);
        }
    }

    #[test]
    fn without_time_nothing_is_begun() {
        let folder = tempfile::tempdir().unwrap();
        let (tally, begun) = conduct(&folder.path().join("results.jsonl"), [RIGHT; 3], 0);
        assert_eq!((tally, begun.len()), (Tally { left: 3, ..Tally::default() }, 0));
    }

    #[test]
    fn a_part_that_finds_nothing_is_not_right() {
        let folder = tempfile::tempdir().unwrap();
        let silent = r#"echo '{"end":{"all":true}}'"#;
        let (tally, _) = conduct(&folder.path().join("r.jsonl"), [silent, RIGHT, RIGHT], 600);
        assert_eq!(tally, Tally { right: 2, wrong: 1, left: 0 });
    }

    #[test]
    fn findings_are_told_in_words() {
        let figure = serde_json::json!({ "figure": { "what": "read", "unit": "GB/s",
            "median": 4000.0, "share": 0.5, "of": "read" } });
        assert_eq!(told(&figure), "  read: 4000.00 GB/s, 50% of read");
        let check = serde_json::json!({ "check": { "what": "norm", "cases": 3, "num_wrong": 1,
            "wrong": ["3 rows"] } });
        assert_eq!(told(&check), "  norm: 3 compared, 1 wrong: 3 rows");
        let note = serde_json::json!({ "note": { "what": "a peer", "text": "not measured: x" } });
        assert_eq!(told(&note), "  a peer: not measured: x");
    }
}
