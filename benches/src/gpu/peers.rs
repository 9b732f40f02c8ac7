//! Peers on the same card: scripts of Python beside this program's own figures, under the same names.
//!
//! A script is given what the suite measured itself and says lines as a part does, with the versions of
//! what it runs. What a machine has no packages for is a note that says so, and never a fault of ours.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use pagoda_kernels::cuda::suite::{Finding, Note, peer_tasks};

use super::child::{self, Outcome};
use super::part::Task;

/// A script and the name of its file.
pub(super) struct Script {
    name: &'static str,
    text: &'static str,
}

/// What all of them import.
const SHARED: Script = Script { name: "peer.py", text: include_str!("../../peers/peer.py") };

/// Products by cuBLASLt.
pub(super) const CUBLASLT: Script =
    Script { name: "cublaslt.py", text: include_str!("../../peers/cublaslt.py") };

/// Attention by PyTorch.
pub(super) const ATTENTION: Script =
    Script { name: "attention.py", text: include_str!("../../peers/attention.py") };

/// The engine of transformers.
pub(super) const TRANSFORMERS: Script = Script {
    name: "transformers_batching.py",
    text: include_str!("../../peers/transformers_batching.py"),
};

/// Between the time at which a script should stop by itself, and that at which it is stopped.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(task: &Task<'_>, script: &Script) -> Result<bool> {
    if task.settings.is_emulated() {
        task.note(Note::not_measured(script.name, "peers need a GPU"))?;
        return Ok(true);
    }
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    for Script { name, text } in [&SHARED, script] {
        std::fs::write(path(name), text)?;
    }
    std::fs::write(path("tasks.json"), serde_json::to_vec(&peer_tasks(task.settings.size()))?)?;
    let left = task.left();
    let mut command = Command::new("python3");
    command.arg("-u").arg(path(script.name)).arg(path("tasks.json"));
    command.arg(left.as_secs().to_string()).env("TOKENIZERS_PARALLELISM", "false");
    let mut said = Ok(());
    let outcome = child::run(command, left + GRACE, &mut |what| {
        if said.is_ok() {
            said = (task.say)(what.clone(), true);
        }
    });
    said?;
    match outcome {
        Ok(Outcome { ended, error: None, .. }) => Ok(ended),
        // There was no time for all of it: the rest may be run again.
        Ok(_) if !(task.keeps_going)() => Ok(false),
        Ok(Outcome { error: Some(why), .. }) => {
            task.note(Note::not_measured(format!("the rest of {}", script.name), why))?;
            Ok(true)
        }
        Err(why) => {
            task.note(Note::not_measured(script.name, why))?;
            Ok(true)
        }
    }
}

impl Task<'_> {
    /// Says what is neither right nor wrong.
    pub(super) fn note(&self, note: Note) -> Result<()> {
        (self.say)(serde_json::to_value(Finding::Note(note))?, true)
    }
}
