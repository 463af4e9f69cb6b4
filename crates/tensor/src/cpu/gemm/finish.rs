//! What is done with rows once they are whole: by whoever stores the last piece of them, while they
//! are in a cache, and while other threads still multiply.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::isa::Isa;
use crate::cpu::norm::norm_row;
use crate::cpu::parallel::SharedMut;
use crate::device::Norm;

/// Something to do with rows that are whole.
pub(crate) trait Finish: Sync {
    /// Finishes some consecutive rows, counted from the first of all parts of a product.
    ///
    /// # Safety
    /// All columns of these rows are stored, before this call in the order of memory; nobody else
    /// touches the rows, and none is finished twice.
    unsafe fn finish(&self, rows: Range<usize>);
}

/// Normalises rows in place.
pub(crate) struct Norms<'a> {
    isa: Isa,
    norm: &'a Norm<Vec<f32>>,
    /// `[n_rows, d_model]`
    c: SharedMut<f32>,
}

impl<'a> Norms<'a> {
    /// For the rows of `c`, which are as wide as the norm.
    pub(crate) fn new(isa: Isa, norm: &'a Norm<Vec<f32>>, c: SharedMut<f32>) -> Self {
        Self { isa, norm, c }
    }
}

impl Finish for Norms<'_> {
    unsafe fn finish(&self, rows: Range<usize>) {
        let n_cols = self.norm.weight.len();
        for row in rows {
            // SAFETY: the rows lie there, and nobody else touches them.
            let row =
                unsafe { std::slice::from_raw_parts_mut(self.c.ptr().add(row * n_cols), n_cols) };
            norm_row(self.isa, self.norm, None, row);
        }
    }
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
