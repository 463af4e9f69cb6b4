//! An end for a process with a thread that hangs.

/// Ends the process at once, whatever its threads are doing: one that hangs in a call of a library must not see
/// that taken down around it. A launcher answers by ending the other ranks.
pub fn end_process(code: i32) -> ! {
    // SAFETY: `_exit` may be called at any time; it runs nothing of this process.
    unsafe { libc::_exit(code) }
}
