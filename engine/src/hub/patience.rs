//! How long failures are put up with: time limits, and pauses between tries.
//!
//! What may pass is tried again, with longer and longer pauses; every byte that arrives begins that
//! anew. What will not pass is told at once.

use std::time::{Duration, Instant};

use super::error::HubError;

/// Limits of time.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    /// For a connection.
    pub(super) connect: Duration,
    /// For an answer to begin, and between two of its pieces.
    pub(super) stall: Duration,
    /// Before each further try; then it is given up.
    pub(super) pauses: Vec<Duration>,
    /// Longest pause that a server may ask for.
    pub(super) pause_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            pauses: [1, 2, 4, 8, 16].map(Duration::from_secs).to_vec(),
            pause_max: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// For a question whose answer is not needed: whoever has files already need not wait long.
    pub(super) fn short(&self) -> Self {
        let at_most = |limit: Duration| limit.min(SHORT);
        Patience {
            connect: at_most(self.connect),
            stall: at_most(self.stall),
            pauses: Vec::new(),
            ..self.clone()
        }
    }
}

/// For a connection, and for an answer, while files are there already.
const SHORT: Duration = Duration::from_secs(4);

/// Between two looks whether a pause is over.
const LOOK: Duration = Duration::from_millis(100);

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It would again.
    Final(HubError),
    /// It may pass.
    Passing {
        /// What happened.
        why: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
    },
}

impl Failure {
    /// One that may pass.
    pub(super) fn passing(why: impl Into<String>) -> Self {
        Failure::Passing { why: why.into(), wait: None }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Failure::Final(error)
    }
}

/// Tries of one thing.
pub(super) struct Tries<'a> {
    patience: &'a Patience,
    what: String,
    failed: usize,
}

impl<'a> Tries<'a> {
    /// None so far; `what` names it in lines and errors.
    pub(super) fn of(what: impl Into<String>, patience: &'a Patience) -> Self {
        Tries { patience, what: what.into(), failed: 0 }
    }

    /// Does it until it works, or there is no use in it.
    pub(super) fn run<T>(
        mut self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => self.pause_after(failure, || false)?,
            }
        }
    }

    /// Something arrived: what failed before does not count any more.
    pub(super) fn forget(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try, unless nobody wants it any more; an error if there is none.
    pub(super) fn pause_after(
        &mut self,
        failure: Failure,
        is_over: impl Fn() -> bool,
    ) -> Result<(), HubError> {
        let (why, wait) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { why, wait } => (why, wait),
        };
        let Some(pause) = self.patience.pauses.get(self.failed) else {
            return Err(HubError::Unreachable { what: self.what.clone(), why });
        };
        self.failed += 1;
        let pause = wait.map_or(*pause, |wait| wait.clamp(*pause, self.patience.pause_max));
        tracing::warn!(what = self.what, why, again_in = ?pause, "the hub fails");
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| !is_over()) {
            std::thread::sleep(left.min(LOOK));
        }
        Ok(())
    }
}
