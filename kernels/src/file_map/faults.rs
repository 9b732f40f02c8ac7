//! Pages of mapped files that cannot be read: zeros, and a mark, instead of the end of the process.
//!
//! The system sends SIGBUS to whoever reads a page beyond the end of a file that was cut, or one
//! that its disk does not give. The handler here looks the address up among the maps of weight
//! files; of such a map it replaces what is left by zeros and marks it. Every other fault goes to
//! the handler that was there before. It never allocates, locks or waits.

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A map that is watched while this lives.
#[derive(Debug)]
pub(super) struct Watched {
    place: usize,
}

/// What the handler knows of a map. `start` is 0 where there is none; it is written last and taken
/// back first, so that whoever reads it twice alike has read its own `end` between.
struct Place {
    is_taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    has_faults: AtomicBool,
}

/// Files of weights that are mapped at a time: a model has 4096 at most.
const PLACES: usize = 16384;

static MAPS: [Place; PLACES] = [const {
    Place {
        is_taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        has_faults: AtomicBool::new(false),
    }
}; PLACES];

impl Watched {
    /// Watches a map, given by its bytes.
    pub(super) fn new(bytes: Range<*const u8>) -> io::Result<Self> {
        install()?;
        let is_free = |place: &Place| !place.is_taken.swap(true, Ordering::Acquire);
        let place = MAPS.iter().position(is_free);
        let place = place.ok_or_else(|| io::Error::other("too many files are mapped"))?;
        MAPS[place].has_faults.store(false, Ordering::Relaxed);
        MAPS[place].end.store(bytes.end as usize, Ordering::SeqCst);
        MAPS[place].start.store(bytes.start as usize, Ordering::SeqCst);
        Ok(Watched { place })
    }

    /// Whether something of it could not be read.
    pub(super) fn has_faults(&self) -> bool {
        MAPS[self.place].has_faults.load(Ordering::SeqCst)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        MAPS[self.place].start.store(0, Ordering::SeqCst);
        MAPS[self.place].is_taken.store(false, Ordering::Release);
    }
}

/// What a fault is handed to that is not ours, and the size of a page.
static BEFORE: OnceLock<(libc::sigaction, usize)> = OnceLock::new();

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        // SAFETY: zeros are a valid value of this plain structure.
        let (mut ours, mut before): (libc::sigaction, libc::sigaction) =
            unsafe { std::mem::zeroed() };
        // SAFETY: only asks, into a structure of ours.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) } != 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        // Before the handler is there: it reads this.
        let _ = BEFORE.set((before, usize::try_from(page).unwrap_or(4096)));
        ours.sa_sigaction = on_fault as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler does only what a handler may (above it), and is never taken away.
        match unsafe { libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Reads atomics and calls `mmap` or the handler before, nothing else.
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the system hands a valid one, and of SIGBUS it holds an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let Some((before, page)) = BEFORE.get() else { return };
    if is_ours(address, *page) {
        return;
    }
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: a valid structure; the fault happens again and then ends the process.
            let _ = unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it with SA_SIGINFO gave a function of three arguments.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without gave a function of one.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Whether the address was in one of our maps, whose rest then reads as zeros.
fn is_ours(address: usize, page: usize) -> bool {
    for map in &MAPS {
        let start = map.start.load(Ordering::SeqCst);
        let end = map.end.load(Ordering::SeqCst);
        let is_same = start == map.start.load(Ordering::SeqCst);
        if start == 0 || !is_same || !(start..end).contains(&address) {
            continue;
        }
        // Marked before anybody can read a zero.
        map.has_faults.store(true, Ordering::SeqCst);
        let first = address / page * page;
        let (protection, flags) = (
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
        );
        // SAFETY: from the page of the fault to the end of a map of ours, which is only read; the
        // map's owner is about to read it, so it is still there, and unmaps the same range later.
        let zeros = unsafe { libc::mmap(first as *mut _, end - first, protection, flags, -1, 0) };
        return zeros != libc::MAP_FAILED;
    }
    false
}
