//! Threads that share independent pieces of work, such as the nodes of a round.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{LinalgError, Result};
use crate::cpu::parallel::{Parallel, SharedMut};

/// A pool of threads, the caller's being one of them.
///
/// Which thread runs a piece never changes its result. A worker without work spins for 50 µs before
/// it sleeps, and nobody waits for one that has not woken up. Calls from several threads at once
/// take turns; a piece must not call its own pool.
pub struct Threads(Parallel);

impl Threads {
    /// `n_threads` with the caller's, placed by the system.
    ///
    /// # Errors
    /// [`LinalgError::Threads`] if there are to be none or the system starts no more.
    pub fn new(n_threads: usize) -> Result<Self> {
        let refused = |reason: String| LinalgError::Threads { n_threads, reason };
        if n_threads == 0 {
            return Err(refused("at least the caller's is needed".to_owned()));
        }
        let parallel = Parallel::new(n_threads, None).map_err(|e| refused(e.to_string()))?;
        Ok(Self(parallel))
    }

    /// Threads that share every operation.
    pub fn n_threads(&self) -> usize {
        self.0.n_threads()
    }

    /// Calls `f(0) .. f(n - 1)`, in any order.
    ///
    /// # Panics
    /// If a call does, once all threads have left the operation.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        self.0.for_each(n, f);
    }

    /// Calls `f(i, chunk)` for each chunk of `size` elements; the last may be shorter.
    ///
    /// # Panics
    /// As [`Threads::for_each`], and if `size` is 0.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        self.0.for_each_chunk(data, size, f);
    }

    /// Calls `f(scratch, 0) .. f(scratch, n - 1)`, each with one of the working memories that no
    /// other call has meanwhile. At most as many threads as there are memories take part.
    ///
    /// # Panics
    /// As [`Threads::for_each`], and if there are pieces but no memory.
    pub fn for_each_with<S: Send>(
        &self,
        scratches: &mut [S],
        n: usize,
        f: impl Fn(&mut S, usize) + Sync,
    ) {
        assert!(n == 0 || !scratches.is_empty(), "work without memory");
        let next = AtomicUsize::new(0);
        let n_runs = scratches.len().min(self.n_threads()).min(n);
        self.for_each_chunk(&mut scratches[..n_runs], 1, |_, scratch| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return;
                }
                f(&mut scratch[0], i);
            }
        });
    }

    /// Calls `f(scratch, i, item)` for each item, which the call alone may change: the nodes of a
    /// round, say, each with its model.
    ///
    /// # Panics
    /// As [`Threads::for_each_with`].
    pub fn for_each_item<S: Send, T: Send>(
        &self,
        scratches: &mut [S],
        items: &mut [T],
        f: impl Fn(&mut S, usize, &mut T) + Sync,
    ) {
        let n = items.len();
        let items = SharedMut::new(items);
        self.for_each_with(scratches, n, |scratch, i| {
            // SAFETY: `i < n` comes once, and the borrow of the items outlives the operation.
            f(scratch, i, unsafe { &mut *items.ptr().add(i) });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_with_a_memory_of_its_own() {
        for n_threads in [1, 2, 5] {
            let threads = Threads::new(n_threads).expect("threads");
            for (n_scratches, n) in [(1, 7), (2, 0), (3, 100), (8, 5)] {
                let mut scratches = vec![0_usize; n_scratches];
                let mut items: Vec<_> = (0..n).collect();
                threads.for_each_item(&mut scratches, &mut items, |count, i, item| {
                    assert_eq!(*item, i);
                    *item += 1000;
                    *count += 1;
                });
                assert!(items.iter().enumerate().all(|(i, &item)| item == i + 1000));
                assert_eq!(scratches.iter().sum::<usize>(), n);
            }
        }
    }

    #[test]
    fn no_threads_are_refused() {
        let message = Threads::new(0).err().expect("refused").to_string();
        assert_eq!(
            message,
            "cannot start 0 threads: at least the caller's is needed"
        );
    }
}
