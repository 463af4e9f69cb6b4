//! A last sentence from a rank that the launcher ends.

use std::ffi::c_int;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::error::MpiError;

/// What the handler prints; null until the first advice. Never freed: the handler may be reading it.
static SENTENCE: AtomicPtr<String> = AtomicPtr::new(ptr::null_mut());

/// Prepares the sentence and has SIGTERM print it.
pub(super) fn advise(rank: usize, world_size: usize, advice: &str) -> Result<(), MpiError> {
    let sentence = format!(
        "rank {rank} of {world_size}: the launcher ends this rank, as it does when another one is lost; {advice}\n"
    );
    SENTENCE.store(Box::into_raw(Box::new(sentence)), Ordering::Release);
    // SAFETY: an action of zeros is valid: no flags, an empty mask. The handler keeps to what a
    // handler may call.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(c_int) = print_and_end;
        action.sa_sigaction = handler as libc::sighandler_t;
        // The second SIGTERM, raised by the handler, ends the process as if there had been none.
        action.sa_flags = libc::SA_RESETHAND;
        libc::sigaction(libc::SIGTERM, &raw const action, ptr::null_mut()) != 0
    };
    if failed {
        let code = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        return Err(MpiError::Signal { rank, code });
    }
    Ok(())
}

extern "C" fn print_and_end(signal: c_int) {
    let sentence = SENTENCE.load(Ordering::Acquire);
    // SAFETY: the pointer is null or to a sentence that is never freed; `write` and `raise` may be
    // called in a handler. Nothing can be done about a failed `write`.
    unsafe {
        if let Some(sentence) = sentence.as_ref() {
            libc::write(
                libc::STDERR_FILENO,
                sentence.as_ptr().cast(),
                sentence.len(),
            );
        }
        libc::raise(signal);
    }
}
