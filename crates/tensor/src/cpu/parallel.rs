//! The threads of one rank.
//!
//! A forward pass is a few hundred short operations, each shared by all threads. Waking a sleeping
//! thread takes longer than many of them, so a worker that has nothing to do spins for a moment
//! before it sleeps, and nobody waits for a worker that has not woken up: who comes too late finds
//! the operation closed.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cores;
use crate::device::DeviceError;

/// How long a worker looks for work before it sleeps: longer than the gaps between the operations
/// of a forward pass, short beside the time between requests.
const SPIN: Duration = Duration::from_micros(50);

/// Runs independent pieces of an operation on a rank's threads. Which thread runs a piece never
/// changes its result.
pub(crate) struct Parallel {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose operation runs.
    turn: Mutex<()>,
}

/// What callers and workers share.
struct Shared {
    /// The number of the operation (upper half), whether workers may still join it, and how many
    /// have.
    state: AtomicU64,
    /// Written while no operation is open and no worker is in one.
    operation: UnsafeCell<Operation>,
    /// The next piece that nobody has.
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Whether each worker sleeps.
    asleep: Vec<AtomicBool>,
}

type Pieces<'a> = dyn Fn(usize) + Sync + 'a;

/// The pieces of an operation: `f(0) .. f(n − 1)`.
#[derive(Clone, Copy)]
struct Operation {
    f: *const Pieces<'static>,
    n: usize,
}

const OPEN: u64 = 1 << 31;
const ONE_OPERATION: u64 = 1 << 32;

// SAFETY: `operation` is written by the one caller that holds the turn, before it opens the
// operation (release) and after every worker has left the one before (acquire); workers read it
// between joining and leaving. What it points to is `Sync` and outlives the operation.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Parallel {
    /// `n_threads` with the caller's; the others are bound to cores after `first_core`, if there is
    /// one.
    pub(crate) fn new(n_threads: usize, first_core: Option<usize>) -> Result<Self, DeviceError> {
        let n_workers = n_threads.saturating_sub(1);
        let nothing: &'static Pieces<'static> = &|_| {};
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            operation: UnsafeCell::new(Operation { f: nothing, n: 0 }),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut parallel = Self {
            shared,
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        for worker_idx in 0..n_workers {
            let shared = Arc::clone(&parallel.shared);
            let worker = thread::Builder::new()
                .name(format!("compute-{worker_idx}"))
                .spawn(move || {
                    if let Some(core) = first_core {
                        cores::bind(core + 1 + worker_idx);
                    }
                    shared.work(worker_idx);
                })
                .map_err(|e| DeviceError::SetUp(format!("{n_threads} compute threads: {e}")))?;
            parallel.workers.push(worker);
        }
        Ok(parallel)
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(0) .. f(n - 1)`.
    ///
    /// # Panics
    /// If a call does, once all threads have left the operation.
    pub(crate) fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        if n <= 1 || self.workers.is_empty() {
            return (0..n).for_each(f);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let f: &Pieces<'_> = &f;
        // SAFETY: only the lifetime changes; `f` lives until this call returns, and no worker is in
        // the operation by then.
        let f = unsafe { std::mem::transmute::<*const Pieces<'_>, *const Pieces<'static>>(f) };
        // SAFETY: the turn is ours and the operation before was left by all, see `Shared`.
        unsafe { *shared.operation.get() = Operation { f, n } };
        shared.next.store(0, Ordering::Relaxed);
        let number = shared.state.load(Ordering::Relaxed) & !(ONE_OPERATION - 1);
        shared
            .state
            .store(number.wrapping_add(ONE_OPERATION) | OPEN, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers).take(n - 1) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_pieces()));
        shared.state.fetch_and(!OPEN, Ordering::Relaxed);
        wait_until(
            || shared.state.load(Ordering::Acquire) & (OPEN - 1) == 0,
            thread::yield_now,
        );
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        mine.unwrap_or_else(|panic| resume_unwind(panic));
        assert!(!panicked, "a compute thread panicked");
    }

    /// Calls `f(i, chunk)` for each chunk of `size` elements.
    pub(crate) fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let len = data.len();
        let data = SharedMut::new(data);
        self.for_each(len.div_ceil(size), |i| {
            let (start, end) = (i * size, len.min((i + 1) * size));
            // SAFETY: chunks are disjoint, lie within `data`, and end before its borrow does.
            f(i, unsafe {
                std::slice::from_raw_parts_mut(data.ptr().add(start), end - start)
            });
        });
    }
}

impl Drop for Parallel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its work, so joining it says nothing.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self, worker_idx: usize) {
        let mut seen = 0;
        loop {
            let is_news = || self.stop.load(Ordering::SeqCst) || self.number() != seen;
            if !spin_until(is_news) {
                self.asleep[worker_idx].store(true, Ordering::SeqCst);
                while !is_news() {
                    thread::park();
                }
                self.asleep[worker_idx].store(false, Ordering::SeqCst);
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let state = self
                .state
                .fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
                    (state & OPEN != 0).then_some(state + 1)
                });
            let (Ok(found) | Err(found)) = state;
            seen = found / ONE_OPERATION;
            if state.is_err() {
                continue; // closed already
            }
            if catch_unwind(AssertUnwindSafe(|| self.take_pieces())).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    fn number(&self) -> u64 {
        self.state.load(Ordering::SeqCst) / ONE_OPERATION
    }

    /// Runs pieces until none is left.
    fn take_pieces(&self) {
        // SAFETY: the operation is open or this thread has joined it, see `Shared`.
        let Operation { f, n } = unsafe { *self.operation.get() };
        // SAFETY: the caller of `for_each` keeps it alive until all have left.
        let f = unsafe { &*f };
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= n {
                return;
            }
            f(piece);
        }
    }
}

/// Spins until `done` holds or [`SPIN`] is over; whether it holds.
fn spin_until(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

/// Spins until `done` holds, at first without and then with `rest` in between.
fn wait_until(done: impl Fn() -> bool, rest: impl Fn()) {
    while !spin_until(&done) {
        rest();
    }
}

/// A pointer into a buffer of which every piece of an operation writes its own part.
pub(crate) struct SharedMut<T>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: whoever uses the pointer promises (at the place of use) that pieces which run at the
// same time write disjoint elements and that nobody reads them meanwhile.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    pub(crate) fn ptr(self) -> *mut T {
        self.0
    }

    /// The buffer without its first `n` elements.
    pub(crate) fn skip(self, n: usize) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_whoever_is_awake() {
        for n_threads in [1, 2, 5] {
            let parallel = Parallel::new(n_threads, None).expect("threads");
            for round in 0..2000 {
                let n = round % 17;
                let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                parallel.for_each(n, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == 1)
                );
                if round % 500 == 0 {
                    thread::sleep(4 * SPIN);
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let parallel = Parallel::new(3, None).expect("threads");
        for bad in 0..20 {
            let run = || parallel.for_each(20, |i| assert_ne!(i, bad, "the piece that fails"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            let n = AtomicUsize::new(0);
            parallel.for_each(20, |_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.into_inner(), 20);
        }
    }
}
