//! Which cores (as the system counts them) threads run on.
//!
//! A thread that computes loses its caches when the scheduler moves it, and two of them on one core
//! make every operation take twice as long, because all wait for the last piece.

/// Binds the calling thread to one core: the `idx`-th of those that it may run on, in the system's
/// order. Does nothing where there is no such core or the system cannot.
///
/// With the two threads of a server bound, 32 clients got 2 to 6 % more out of two cores.
#[cfg(target_os = "linux")]
pub(crate) fn bind(idx: usize) {
    let allowed = allowed();
    // SAFETY: `CPU_SETSIZE` is what `CPU_ISSET` may be asked for; the set is a plain bit mask.
    let mut cores =
        (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &allowed) });
    let Some(core) = cores.nth(idx) else { return };
    // SAFETY: as above; the call reads one set, and a refusal changes nothing.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut one);
        libc::sched_setaffinity(0, size_of_val(&one), &raw const one);
    }
}

/// See above.
#[cfg(not(target_os = "linux"))]
pub(crate) fn bind(_idx: usize) {}

/// How many cores the calling thread may run on; `None` where the system does not say.
pub fn n_allowed() -> Option<usize> {
    #[cfg(target_os = "linux")]
    // SAFETY: the set is a plain bit mask.
    return Some(unsafe { libc::CPU_COUNT(&allowed()) } as usize).filter(|&n| n > 0);
    #[cfg(not(target_os = "linux"))]
    None
}

/// The cores that the calling thread may run on; none if the system does not say.
#[cfg(target_os = "linux")]
fn allowed() -> libc::cpu_set_t {
    // SAFETY: an all-zero set is an empty one, and the call writes at most one set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
        set
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_has_one_core_and_an_impossible_one_is_not_asked_for() {
        let before = n_allowed().expect("Linux says");
        let in_thread = |idx| {
            std::thread::spawn(move || {
                bind(idx);
                n_allowed()
            })
            .join()
            .expect("no panic")
        };
        assert_eq!(in_thread(before - 1), Some(1));
        assert_eq!(in_thread(before), Some(before));
        assert_eq!(n_allowed(), Some(before));
    }
}
