//! The process in which a model's template is rendered: answers who started it, and ends with it.
//!
//! It has no environment and may open nothing, neither file nor address nor process; memory, stack
//! and time are bounded by the system: a template that takes more ends it, and nothing else.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::compiled::Compiled;
use super::wire::{OwnedChat, receive, send};
use super::{TemplateError, TemplateLimits, TemplateSources};

/// Answers on the socket that is the standard input, until its other end is closed.
pub fn answer() -> io::Result<()> {
    pagoda_kernels::heap::keep_little();
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // What comes is from our own program: bodies of requests, which are bounded there.
    let first = receive::<(TemplateSources, TemplateLimits)>(&mut socket, u64::MAX)?;
    let Some((sources, limits)) = first else { return Ok(()) };
    bound_all_but_time(&limits)?;
    bound_time(&limits)?;
    let compiled = Compiled::new(&sources, limits);
    send(&mut socket, &compiled.as_ref().map(drop).map_err(TemplateError::clone))?;
    let Ok(compiled) = compiled else { return Ok(()) };
    while let Some(chat) = receive::<OwnedChat>(&mut socket, u64::MAX)? {
        bound_time(&limits)?;
        let answer = compiled.render(&chat.as_chat());
        drop(chat);
        send(&mut socket, &answer)?;
        if answer.is_ok_and(|text| text.len() >= LARGE_BYTES) {
            pagoda_kernels::heap::give_back();
        }
    }
    Ok(())
}

/// Whoever asks for more than this ends by a signal, without a dump of what clients said.
fn bound_all_but_time(limits: &TemplateLimits) -> io::Result<()> {
    let at_most = |resource: Resource, most: u64| {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let most = Some(maximum.map_or(most, |maximum| maximum.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })
    };
    at_most(Resource::Core, 0)?;
    at_most(Resource::Nofile, 0)?;
    at_most(Resource::Nproc, 0)?;
    at_most(Resource::Stack, STACK_BYTES)?;
    Ok(at_most(Resource::Data, limits.memory_bytes_max)?)
}

/// A text that leaves memory behind which is worth the time to give it back.
const LARGE_BYTES: usize = 1 << 20;

/// The usual stack of a process; an environment may allow one without an end.
const STACK_BYTES: u64 = 8 << 20;

/// From now on.
fn bound_time(limits: &TemplateLimits) -> io::Result<()> {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let spent = u64::try_from(spent.tv_sec).unwrap_or(0) + 1;
    let Rlimit { maximum, .. } = getrlimit(Resource::Cpu);
    let until = spent.saturating_add(limits.cpu_seconds_max);
    let until = Some(maximum.map_or(until, |maximum| maximum.min(until)));
    Ok(setrlimit(Resource::Cpu, Rlimit { current: until, maximum })?)
}
