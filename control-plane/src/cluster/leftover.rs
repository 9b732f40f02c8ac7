//! Ends a Postgres whose owner died, and removes what it wrote about itself.
//!
//! Called by the owner of the folder alone, so whatever runs in it has none. A server and all that it
//! spawned have the data as their working folder: that is asked, never a number in a file alone,
//! which may be another process's by now.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::ClusterError;

/// Where a server writes its number.
pub(super) const PROCESS_FILE: &str = "postmaster.pid";

/// Waits until nothing runs in `data`, which is a path without links.
pub(super) fn end(data: &Path) -> Result<(), ClusterError> {
    let since = Instant::now();
    let mut asked = None;
    loop {
        let running = processes(data);
        let Some(one) = running.first() else { break };
        let server = written(data).filter(|server| running.contains(server));
        let signal = match since.elapsed() {
            // In order, and if that takes long at once; neither loses what was committed.
            waited if waited < PATIENCE => Signal::INT,
            waited if waited < 2 * PATIENCE => Signal::QUIT,
            _ => {
                let process = one.as_raw_nonzero().get();
                return Err(ClusterError::Leftover { data: data.into(), process });
            }
        };
        // Those that lost their server end by themselves.
        if let Some(server) = server.filter(|_| asked != Some(signal)) {
            tracing::warn!(?server, ?signal, "ends a Postgres whose owner died");
            let _ = kill_process(server, signal);
            asked = Some(signal);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    // Another process may have got that number, and Postgres would not start.
    match std::fs::remove_file(data.join(PROCESS_FILE)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(ClusterError::Folder { path: data.join(PROCESS_FILE), source })
        }
        _ => Ok(()),
    }
}

fn written(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join(PROCESS_FILE)).ok()?;
    Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

/// Processes that work in `data`. Where the system does not tell, none: then Postgres itself refuses.
pub(super) fn processes(data: &Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers =
        entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let works_here = |process: &Pid| {
        let link = format!("/proc/{}/cwd", process.as_raw_nonzero());
        std::fs::read_link(link).is_ok_and(|folder| folder == data)
    };
    numbers.filter(works_here).collect()
}

/// Long enough for a server to write all that it holds.
const PATIENCE: Duration = Duration::from_secs(60);

const LOOK_AGAIN: Duration = Duration::from_millis(20);
