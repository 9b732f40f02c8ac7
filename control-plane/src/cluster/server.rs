//! The server as our child: one thread spawns it, waits for it and spawns it again if it dies.
//!
//! That thread lives as long as the server shall, since the kernel ends the one with the other.
//! Whoever signals holds the lock under which the child is reaped, so no other process is ever meant.

use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::folder::Folder;
use super::{ClusterError, leftover};

/// A server that is kept alive. Dropped, it is stopped.
pub(super) struct Server {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    child: Option<Pid>,
    /// It answered once: from then on it is spawned again.
    served: bool,
    stopping: bool,
    /// Why the first start failed.
    failed: Option<ClusterError>,
}

impl Server {
    /// Spawns `command` and waits until it answers.
    pub(super) fn start(
        command: Command,
        folder: &Folder,
        patience: Duration,
    ) -> Result<Self, ClusterError> {
        let shared = Arc::new(Shared::default());
        let keeper = std::thread::Builder::new().name("postgres".into()).spawn({
            let (shared, folder) = (shared.clone(), folder.clone());
            move || keep(command, &folder, &shared)
        });
        let fail = |source| ClusterError::Folder { path: folder.path().into(), source };
        let server = Server { shared, keeper: Some(keeper.map_err(fail)?) };
        let since = Instant::now();
        loop {
            let mut state = server.shared.lock();
            if let Some(failed) = state.failed.take() {
                return Err(failed);
            }
            let child = state.child.map(|child| child.as_raw_nonzero().get().cast_unsigned());
            if child.is_some() && folder.serving() == child {
                state.served = true;
                drop(state);
                return Ok(server);
            }
            if since.elapsed() > patience {
                drop(state);
                return Err(not_started(folder));
            }
            drop(server.shared.wait(state, LOOK_AGAIN));
        }
    }

    /// The server's process id, if it has one now.
    pub(super) fn process(&self) -> Option<u32> {
        self.shared.lock().child.map(|child| child.as_raw_nonzero().get().cast_unsigned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.changed.notify_all();
        // Fast: sessions end, what was committed is written. If that takes too long, at once: then
        // the next start reads it from the log.
        for (signal, patience) in [(Signal::INT, STOP_PATIENCE), (Signal::QUIT, STOP_PATIENCE)] {
            if let Some(child) = state.child {
                let _ = kill_process(child, signal);
            }
            let until = Instant::now() + patience;
            while state.child.is_some() && Instant::now() < until {
                state = self.shared.wait(state, patience);
            }
        }
        let gone = state.child.is_none();
        drop(state);
        if let Some(keeper) = self.keeper.take().filter(|_| gone) {
            let _ = keeper.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something changes, or for as long.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Waits until the server of another process answers.
pub(super) fn wait_for_another(folder: &Folder, patience: Duration) -> Result<(), ClusterError> {
    let since = Instant::now();
    while folder.serving().is_none() {
        if since.elapsed() > patience {
            return Err(not_started(folder));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn keep(mut command: Command, folder: &Folder, shared: &Shared) {
    let mut pause = FIRST_PAUSE;
    loop {
        let born = Instant::now();
        let ended = spawn(&mut command, folder).and_then(|child| {
            watch(child, shared)
                .map_err(|source| ClusterError::Folder { path: folder.data().into(), source })
        });
        let mut state = shared.lock();
        if state.stopping {
            return;
        }
        if !state.served {
            state.failed = Some(ended.err().unwrap_or_else(|| not_started(folder)));
            shared.changed.notify_all();
            return;
        }
        tracing::error!(?ended, log = %folder.log_path().display(), "Postgres ended; starts again");
        pause = if born.elapsed() > LAST_PAUSE { FIRST_PAUSE } else { LAST_PAUSE.min(2 * pause) };
        let until = Instant::now() + pause;
        while !state.stopping && Instant::now() < until {
            state = shared.wait(state, pause);
        }
        if state.stopping {
            return;
        }
    }
}

fn spawn(command: &mut Command, folder: &Folder) -> Result<Child, ClusterError> {
    leftover::end(folder.data())?;
    let log = folder.log()?;
    let fail = |source| ClusterError::Folder { path: folder.log_path(), source };
    command.stdout(log.try_clone().map_err(fail)?).stderr(log);
    command.spawn().map_err(|error| ClusterError::Program {
        program: command.get_program().display().to_string(),
        output: error.to_string(),
    })
}

/// Until the child has ended and is reaped.
fn watch(mut child: Child, shared: &Shared) -> std::io::Result<()> {
    let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| std::io::Error::other("a child without a number"))?;
    let mut state = shared.lock();
    state.child = Some(process);
    if state.stopping {
        let _ = kill_process(process, Signal::INT);
    }
    drop(state);
    // Its number stays its own until it is reaped, under the lock.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(process), ended) {}
    let mut state = shared.lock();
    state.child = None;
    let status = child.wait();
    shared.changed.notify_all();
    tracing::debug!(?status, "Postgres ended");
    status.map(|_| ())
}

fn not_started(folder: &Folder) -> ClusterError {
    ClusterError::NotStarted { log: folder.log_path(), end: folder.end_of_log() }
}

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A server that died is spawned again after this,
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// and if it goes on dying after at most this.
const LAST_PAUSE: Duration = Duration::from_secs(5);

const STOP_PATIENCE: Duration = Duration::from_secs(60);
