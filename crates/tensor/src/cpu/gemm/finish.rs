//! What is done with rows once they are whole: by whoever stores the last piece of them, while they
//! are in a cache, and while other threads still multiply.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Something to do with rows that are whole.
pub(crate) trait Finish: Sync {
    /// Finishes some consecutive rows, counted from the first of all parts of a product.
    ///
    /// # Safety
    /// All columns of these rows are stored, before this call in the order of memory; nobody else
    /// touches the rows, and none is finished twice.
    unsafe fn finish(&self, rows: Range<usize>);
}

/// How much each of several things still waits for. Memory that only grows.
#[derive(Default)]
pub(crate) struct Countdowns(Vec<AtomicUsize>);

impl Countdowns {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// One more thing, which waits for `n`; its index.
    pub(crate) fn push(&mut self, n: usize) -> usize {
        self.0.push(AtomicUsize::new(n));
        self.0.len() - 1
    }

    /// Takes one off; whether that was the last. Who is told so sees what all others have stored
    /// before they took theirs off.
    pub(crate) fn is_last(&self, idx: usize) -> bool {
        self.0[idx].fetch_sub(1, Ordering::AcqRel) == 1
    }
}
