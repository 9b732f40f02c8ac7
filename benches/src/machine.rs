//! What stands beside every figure: the commit, the machine's load, what its neighbours stole.

use std::process::Command;

/// The commit: of the build, if it was told (`PAGODA_COMMIT`), else the one that is checked out, short,
/// with a `+` if files differ from it; `unknown` outside a checkout.
pub fn commit() -> String {
    if let Some(commit) = option_env!("PAGODA_COMMIT") {
        return commit.into();
    }
    let changed = Command::new("git").args(["diff", "--quiet", "HEAD"]).status();
    let mark = if changed.is_ok_and(|status| status.code() == Some(1)) { "+" } else { "" };
    let head = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    match head {
        Ok(head) if head.status.success() => {
            String::from_utf8_lossy(&head.stdout).trim().to_owned() + mark
        }
        _ => "unknown".into(),
    }
}

/// Runnable threads, averaged over a minute; NaN where the system does not say.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// The most memory that this process ever held, in MiB; NaN where the system does not say.
pub fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Ticks of all CPUs since boot; zeros where the system does not say.
#[derive(Clone, Copy, Debug)]
pub struct CpuTimes {
    steal: u64,
    total: u64,
}

impl CpuTimes {
    /// The present reading.
    pub fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            first.split_whitespace().filter_map(|tick| tick.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest times are part of user.
        let total = ticks.iter().take(8).sum();
        CpuTimes { steal: ticks.get(7).copied().unwrap_or(0), total }
    }

    /// Percent of CPU time that was stolen since `before`.
    pub fn steal_percent_since(&self, before: &CpuTimes) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        100.0 * self.steal.saturating_sub(before.steal) as f64 / total as f64
    }
}
