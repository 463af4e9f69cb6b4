//! Weighted sums of rows, a few registers of columns at a time.

use std::ops::Range;

use super::Csr;
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;
use crate::linalg::lanes::{EndLanes, LaneWork, fetch, on_lanes, stored_past_caches};

/// Rows that are fetched before they are copied.
const ROWS_AHEAD: usize = 8;

/// Some rows and columns of a product.
pub(super) struct Piece<'a> {
    pub(super) csr: &'a Csr,
    pub(super) groups: Range<usize>,
    pub(super) cols: Range<usize>,
    /// Row `i` of the dense matrix, from column `x_col` on, is `x[i · x_row ..]`.
    pub(super) x: *const f32,
    pub(super) x_row: usize,
    pub(super) x_col: usize,
    /// Where the piece's columns are gathered before they are read again and again.
    pub(super) gathered: Option<&'a mut [f32]>,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    /// Whether results go past the caches.
    pub(super) is_large: bool,
}

impl Piece<'_> {
    /// # Safety
    /// This machine has `isa`; rows of `x` and of `out` are valid for the columns, and nobody else
    /// uses these elements of `out` meanwhile.
    pub(super) unsafe fn run(self, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { on_lanes(isa, self) };
    }

    /// Copies the piece's columns of all rows side by side, in order and far ahead: rows would
    /// else come from memory one cache miss after the other.
    ///
    /// # Safety
    /// As [`Piece::run`].
    #[inline(always)]
    unsafe fn gather<L: EndLanes>(&self, to: &mut [f32]) {
        let n_cols = self.cols.len();
        let to_row = n_cols.next_multiple_of(LANES);
        let n_last = n_cols - (to_row - LANES);
        for (row, to) in to
            .chunks_exact_mut(to_row)
            .take(self.csr.n_cols)
            .enumerate()
        {
            let from = self.x.wrapping_add(row * self.x_row + self.cols.start);
            let ahead = from.wrapping_add(ROWS_AHEAD * self.x_row);
            for at in (0..to_row).step_by(LANES) {
                fetch(ahead.wrapping_add(at));
                // SAFETY: the caller's promise; the last register has `n_last` columns.
                unsafe {
                    let from = from.add(at);
                    let x = match at + LANES == to_row {
                        true => L::load_first(from, n_last),
                        false => L::load_f32(from),
                    };
                    x.store(to.as_mut_ptr().add(at));
                }
            }
        }
    }

    /// `N` registers of columns from `col` on, of all rows of a group. The last register has
    /// `n_last` columns.
    ///
    /// # Safety
    /// As [`Piece::run`].
    #[inline(always)]
    unsafe fn sums<L: EndLanes, const N: usize, const ENDS: bool>(
        &self,
        rows: &[u32],
        col: usize,
        n_last: usize,
    ) {
        let entries = self.csr.entries(rows[0] as usize);
        let cols = &self.csr.cols[entries.clone()];
        let values = &self.csr.values[entries];
        // SAFETY: the caller's promise; columns of `csr` are rows of `x`.
        unsafe {
            let mut sums = [L::zero(); N];
            for (&row, &value) in cols.iter().zip(values) {
                let from = self.x.add(row as usize * self.x_row + col - self.x_col);
                let value = L::splat(value);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let from = from.add(i * LANES);
                    let x = match ENDS && i == N - 1 {
                        true => L::load_first(from, n_last),
                        false => L::load_f32(from),
                    };
                    *sum = sum.add_product(value, x);
                }
            }
            for &row in rows {
                let to = self.out.add(row as usize * self.out_row + col);
                let is_aligned = to.addr().is_multiple_of(LANES * size_of::<f32>());
                for (i, sum) in sums.into_iter().enumerate() {
                    let to = to.add(i * LANES);
                    match (ENDS && i == N - 1, self.is_large && is_aligned) {
                        (true, _) => sum.store_first(to, n_last),
                        (false, true) => sum.store_past_caches(to),
                        (false, false) => sum.store(to),
                    }
                }
            }
        }
    }

    /// All columns of a group, `N` registers at a time.
    ///
    /// # Safety
    /// As [`Piece::run`].
    #[inline(always)]
    unsafe fn group<L: EndLanes, const N: usize>(&self, rows: &[u32]) {
        let mut col = self.cols.start;
        // SAFETY: the caller's promise; no call goes beyond the end of the columns.
        unsafe {
            while col + N * LANES <= self.cols.end {
                self.sums::<L, N, false>(rows, col, LANES);
                col += N * LANES;
            }
            if N > 4 && col + 4 * LANES <= self.cols.end {
                self.sums::<L, 4, false>(rows, col, LANES);
                col += 4 * LANES;
            }
            if N > 2 && col + 2 * LANES <= self.cols.end {
                self.sums::<L, 2, false>(rows, col, LANES);
                col += 2 * LANES;
            }
            while col + LANES <= self.cols.end {
                self.sums::<L, 1, false>(rows, col, LANES);
                col += LANES;
            }
            if col < self.cols.end {
                self.sums::<L, 1, true>(rows, col, self.cols.end - col);
            }
        }
    }
}

impl LaneWork for Piece<'_> {
    #[inline(always)]
    unsafe fn run<L: EndLanes>(mut self) {
        if let Some(to) = self.gathered.take() {
            // SAFETY: the caller's promise.
            unsafe { self.gather::<L>(to) };
            self.x = to.as_ptr();
            self.x_row = self.cols.len().next_multiple_of(LANES);
            self.x_col = self.cols.start;
        }
        for group in self.groups.clone() {
            let members = self.csr.group_starts[group]..self.csr.group_starts[group + 1];
            let rows = &self.csr.members[members];
            // SAFETY: the caller's promise.
            unsafe {
                match L::ISA {
                    Isa::Avx512 | Isa::Avx512Bf16 => self.group::<L, 8>(rows),
                    Isa::Avx2 => self.group::<L, 4>(rows),
                    Isa::Portable => self.group::<L, 2>(rows),
                }
            }
        }
        stored_past_caches();
    }
}
