//! A part in its own process: what it says on its output, a line of JSON each, and how it ended.
//!
//! The process is ended when its time is up, so a kernel that never returns costs one part.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a part says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// Something was found, and whether it is right.
    Finding {
        /// The finding.
        what: Value,
        /// Whether nothing is wrong with it.
        right: bool,
    },
    /// A case begins, which may fail the device or hang it.
    Case {
        /// Which.
        text: String,
    },
    /// The part is over: all of it, or as much as the time allowed.
    End {
        /// Whether that was all.
        all: bool,
    },
    /// The device or the part failed.
    Error {
        /// Why.
        text: String,
    },
}

/// How a part ended, and what it found till then.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// What was found.
    pub findings: Vec<Value>,
    /// Whether nothing of it is wrong.
    pub right: bool,
    /// Whether the part came to its end.
    pub ended: bool,
    /// Why it did not.
    pub error: Option<String>,
    /// The case that began last.
    pub case: Option<String>,
}

/// Messages that wait to be read.
const WAITING_MAX: usize = 256;

impl Message {
    /// Says it, in the part's process.
    pub fn say(&self) -> Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let mut output = std::io::stdout().lock();
        output.write_all(&text)?;
        Ok(output.flush()?)
    }
}

/// Runs `command` and listens, for `time` at most; each finding goes to `told`, too.
pub fn run(mut command: Command, time: Duration, told: &mut dyn FnMut(&Value)) -> Result<Outcome> {
    let deadline = Instant::now() + time;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let output = child.stdout.take().context("a part without output")?;
    let messages = listen(output);
    let mut outcome =
        Outcome { findings: Vec::new(), right: true, ended: false, error: None, case: None };
    let mut has_end = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match messages.recv_timeout(left) {
            Ok(line) => has_end |= outcome.take(&line, told),
            Err(RecvTimeoutError::Timeout) => {
                outcome.ended = false;
                outcome.error = Some("stopped: it did not return in time".into());
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    outcome.close(&mut child)?;
    if !has_end && outcome.error.is_none() {
        outcome.error = Some("did not say that it ended".into());
        outcome.right = false;
    }
    if let (Some(error), Some(case)) = (&mut outcome.error, &outcome.case) {
        error.push_str("; the last case was ");
        error.push_str(case);
    }
    Ok(outcome)
}

/// Lines of `output`, until it closes.
fn listen(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Outcome {
    /// Takes a message in; returns whether it was the last.
    fn take(&mut self, line: &str, told: &mut dyn FnMut(&Value)) -> bool {
        match serde_json::from_str(line) {
            Ok(Message::Finding { what, right }) => {
                told(&what);
                self.right &= right;
                self.findings.push(what);
            }
            Ok(Message::Case { text }) => self.case = Some(text),
            Ok(Message::End { all }) => {
                self.ended = all;
                return true;
            }
            Ok(Message::Error { text }) => self.error = Some(text),
            Err(_) => self.error = Some(format!("said what is no message: {line:.200}")),
        }
        false
    }

    /// Ends the process, and takes what it returned into account.
    fn close(&mut self, child: &mut Child) -> Result<()> {
        if self.error.is_some() {
            // It may be gone already, or hang.
            let _ = child.kill();
        }
        let status = child.wait()?;
        if !status.success() && self.error.is_none() {
            self.error = Some(format!("ended with {status}"));
        }
        if self.error.is_some() {
            self.ended = false;
            self.right = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(script: &str, time_s: u64) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, Duration::from_secs(time_s), &mut |_| ()).unwrap()
    }

    const FOUND: &str = r#"echo '{"finding":{"what":{"n":1},"right":true}}'"#;
    const ENOUGH: u64 = 600;

    #[test]
    fn findings_are_kept_however_a_part_ends() {
        let found = vec![serde_json::json!({ "n": 1 })];
        let end = r#"echo '{"end":{"all":true}}'"#;
        let whole = outcome(&format!("{FOUND}; {end}"), ENOUGH);
        assert_eq!(
            whole,
            Outcome { findings: found.clone(), right: true, ended: true, error: None, case: None }
        );
        let cut = outcome(&format!("{FOUND}; {}", end.replace("true", "false")), ENOUGH);
        assert!(!cut.ended && cut.right && cut.error.is_none() && cut.findings == found);
        let others = [
            (format!("{FOUND}; kill -9 $$"), "signal"),
            (format!("{FOUND}; exit 7"), "7"),
            (FOUND.to_owned(), "did not say"),
            (format!("{FOUND}; echo '{{\"error\":{{\"text\":\"a fault\"}}}}'"), "a fault"),
            (format!("{FOUND}; {end}; exit 1"), "1"),
            (format!("{FOUND}; echo no message"), "no message"),
        ];
        for (script, reason) in others {
            let outcome = outcome(&script, ENOUGH);
            assert!(outcome.error.as_ref().is_some_and(|e| e.contains(reason)), "{outcome:?}");
            assert!(!outcome.ended && !outcome.right && outcome.findings == found, "{script}");
        }
    }

    #[test]
    fn an_error_names_the_case_in_which_it_came() {
        let case = |name| format!(r#"echo '{{"case":{{"text":"{name}"}}}}'"#);
        let (first, second) = (case("a norm"), case("a product"));
        for (end, why) in [("kill -9 $$", "signal"), ("exec sleep 100000", "in time")] {
            let outcome = outcome(&format!("{first}; {FOUND}; {second}; {end}"), 2);
            let error = outcome.error.unwrap();
            assert!(error.contains(why), "{error}");
            assert!(error.ends_with("; the last case was a product"), "{error}");
            assert_eq!(outcome.findings.len(), 1);
        }
        let end = r#"echo '{"end":{"all":true}}'"#;
        assert_eq!(outcome(&format!("{first}; {FOUND}; {end}"), ENOUGH).error, None);
    }

    #[test]
    fn what_is_wrong_is_kept_in_mind() {
        let wrong = FOUND.replace("true", "false");
        let outcome =
            outcome(&format!("{wrong}; {FOUND}; echo '{{\"end\":{{\"all\":true}}}}'"), ENOUGH);
        assert!(outcome.ended && !outcome.right && outcome.findings.len() == 2);
    }

    #[test]
    fn a_part_that_hangs_is_ended() {
        let outcome = outcome(&format!("{FOUND}; exec sleep 100000"), 2);
        assert!(outcome.error.is_some_and(|error| error.contains("in time")));
        assert!(!outcome.ended && outcome.findings.len() == 1);
    }
}
