//! The end of a process whose threads still compute: after everything else, called by `main` alone.
//!
//! Must never be called while anything waits to be written: no buffer is flushed, nothing is dropped.

/// Ends the process with this code, and runs no exit handler.
///
/// Exit handlers of C and C++ libraries, a GPU's driver among them, take their state down while other
/// threads are still within their calls: the heap is damaged and the process ends by a signal.
pub fn leave_at_once(code: u8) -> ! {
    // SAFETY: `_exit` takes any number, touches no memory of ours and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}
