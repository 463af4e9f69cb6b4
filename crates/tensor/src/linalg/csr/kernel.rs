//! Weighted sums of rows, a few registers of columns at a time.

use std::ops::Range;

use super::Csr;
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;
use crate::linalg::lanes::{EndLanes, LaneWork, on_lanes, stored_past_caches};

/// Some rows and columns of a product.
pub(super) struct Piece<'a> {
    pub(super) csr: &'a Csr,
    pub(super) groups: Range<usize>,
    pub(super) cols: Range<usize>,
    pub(super) x: *const f32,
    pub(super) x_row: usize,
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
                let from = self.x.add(row as usize * self.x_row + col);
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
                let is_aligned = to.addr() % (LANES * size_of::<f32>()) == 0;
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
    unsafe fn run<L: EndLanes>(self) {
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
