//! A template in processes of its own: as many as render at a time, kept for the next chat.
//!
//! A process that a template ends, or that does not answer, costs the chat that it rendered and is
//! started again for the next. Whatever it sends is text or an error; it is trusted with nothing.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;

use super::wire::{receive, send};
use super::{Bound, Chat, TemplateError, TemplateLimits, TemplateSources};

/// How a process is started that answers as [`super::answer_renderings`] does.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// All of its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// This program with other arguments, also if its file was replaced since it was started.
    pub fn own(arguments: &[&str]) -> io::Result<Self> {
        let linked = Path::new("/proc/self/exe");
        let path = if linked.exists() { linked.to_owned() } else { std::env::current_exe()? };
        let arguments = arguments.iter().map(OsString::from).collect();
        Ok(Program { path, arguments, environment: Vec::new() })
    }
}

/// A model's templates, apart.
#[derive(Debug)]
pub(super) struct Apart {
    program: Program,
    opening: (TemplateSources, TemplateLimits),
    /// Processes that render nothing now; never more than rendered at a time.
    idle: Mutex<Vec<Worker>>,
}

impl Apart {
    /// Starts the first process, which renders a word.
    pub(super) fn new(
        sources: TemplateSources,
        program: &Program,
        limits: TemplateLimits,
    ) -> Result<Self, TemplateError> {
        let apart = Apart {
            program: program.clone(),
            opening: (sources, limits),
            idle: Mutex::new(Vec::new()),
        };
        let worker = apart.start().map_err(TemplateError::at_load)?;
        apart.keep(worker);
        Ok(apart)
    }

    /// The prompt's text.
    pub(super) fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        let limits = &self.opening.1;
        if let Some(mut worker) = self.idle() {
            match worker.ask(chat, limits) {
                // It ended before it was asked: no chat is to blame.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                asked => return self.settle(worker, asked),
            }
        }
        let mut worker = self.start()?;
        let asked = worker.ask(chat, limits);
        self.settle(worker, asked)
    }

    /// Keeps a process that answered, and ends one that did not.
    fn settle(
        &self,
        worker: Worker,
        asked: io::Result<Result<String, TemplateError>>,
    ) -> Result<String, TemplateError> {
        match asked {
            Ok(answer) => {
                self.keep(worker);
                answer
            }
            Err(ended) => Err(worker.end(&ended)),
        }
    }

    fn start(&self) -> Result<Worker, TemplateError> {
        let mut worker = Worker::start(&self.program)
            .map_err(|error| TemplateError::Process(format!("cannot be started: {error}")))?;
        match worker.ask::<()>(&self.opening, &self.opening.1) {
            Ok(opened) => opened.map(|()| worker),
            Err(ended) => Err(worker.end(&ended)),
        }
    }

    fn idle(&self) -> Option<Worker> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // One that the system ended meanwhile is none.
        std::iter::from_fn(|| idle.pop()).find_map(Worker::alive)
    }

    fn keep(&self, worker: Worker) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }
}

/// A process, until this is dropped.
#[derive(Debug)]
struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Worker {
    fn start(program: &Program) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let child = Command::new(&program.path)
            .arg0("pagoda")
            .args(&program.arguments)
            .env_clear()
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for who started it: what is asked for may end first.
            .process_group(0)
            .spawn()?;
        Ok(Worker { child, socket })
    }

    fn alive(mut self) -> Option<Self> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    /// What it answers; an error if it does not.
    fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        what: &impl Serialize,
        limits: &TemplateLimits,
    ) -> io::Result<Result<T, TemplateError>> {
        send(&mut self.socket, what)?;
        let bytes_max = (limits.output_bytes_max as u64).saturating_add(ANSWER_BYTES);
        let answer = receive(&mut self.socket, bytes_max)?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Ends it, which did not answer, and says why.
    fn end(mut self, ended: &io::Error) -> TemplateError {
        let is_late = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&ended.kind());
        let is_damaged = ended.kind() == io::ErrorKind::InvalidData;
        if is_late || is_damaged {
            // It is gone already if this fails.
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        tracing::warn!(?status, "the process that renders a chat template ended");
        match status {
            _ if is_late => TemplateError::TooMuch(Bound::Time),
            _ if is_damaged => TemplateError::Process("gave no answer of ours".into()),
            Ok(status) => of_status(status),
            Err(error) => TemplateError::Process(format!("was lost: {error}")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Either fails only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process took too much of, by the signal that ended it.
fn of_status(status: ExitStatus) -> TemplateError {
    let is_one = |signals: &[Signal]| signals.iter().any(|s| status.signal() == Some(s.as_raw()));
    if is_one(&[Signal::XCPU]) {
        return TemplateError::TooMuch(Bound::Time);
    }
    // No memory is an abort, and so is a stack that is full; the system kills what it has none for.
    if is_one(&[Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::KILL]) {
        return TemplateError::TooMuch(Bound::Memory);
    }
    TemplateError::Process(format!("ended with {status}"))
}

/// For an answer. Its own limit of time comes first, unless the machine has no time for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an answer is longer than its text, and an error may be.
const ANSWER_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests;
