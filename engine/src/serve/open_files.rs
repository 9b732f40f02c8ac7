//! Lets the process have as many sockets as connections are allowed, before the first is accepted.
//!
//! Systems start processes with a soft limit of 1,024 open files, for programs that cannot bear more; the
//! hard limit is the operator's word and stays as it is.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one, and says so if that is still too few.
pub(super) fn allow(connections_max: u32) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused, the old limit holds: that is no reason not to serve.
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // `None` is no limit.
    let wanted = u64::from(connections_max) * FILES_OF_CONNECTION + FILES_BESIDE;
    if let Some(allowed) = allowed
        && allowed < wanted
    {
        tracing::warn!(allowed, wanted, "fewer files may be open than --max-connections asks for");
    }
}

/// A connection's socket has two names (`pagoda_http::connection`).
const FILES_OF_CONNECTION: u64 = 2;

/// Files, pipes and sockets of everything else.
const FILES_BESIDE: u64 = 64;
