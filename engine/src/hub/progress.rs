//! What a person sees while files arrive: a bar on a terminal, a line now and then elsewhere.
//!
//! Counts bytes of all files at once, what was there from before included.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::memory::gib;

/// Bytes that are there, and bytes there will be.
pub(super) struct Progress {
    bar: ProgressBar,
    /// When the last line was written; `None` where there is a bar.
    told: Option<Mutex<Instant>>,
}

impl Progress {
    /// Of `total` bytes none so far.
    pub(super) fn of(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let told = bar.is_hidden().then(|| Mutex::new(Instant::now()));
        // The text is ours: it fails in no test and so never.
        if let Ok(style) = ProgressStyle::with_template(STYLE) {
            bar.set_style(style);
        }
        Progress { bar, told }
    }

    /// Bytes that were there already: they say nothing about the speed.
    pub(super) fn found(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.bar.reset_eta();
    }

    /// Bytes that arrived.
    pub(super) fn arrived(&self, bytes: u64) {
        self.bar.inc(bytes);
        let Some(mut told) = self.told.as_ref().and_then(|told| told.lock().ok()) else { return };
        if told.elapsed() < LINE_INTERVAL {
            return;
        }
        *told = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let rate = format!("{}/s", gib(self.bar.per_sec() as u64));
        tracing::info!(done = gib(done), of = gib(total), rate, "downloading");
    }

    /// Bytes that were thrown away.
    pub(super) fn lost(&self, bytes: u64) {
        self.bar.dec(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

const STYLE: &str =
    "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// Between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
