//! Where the rows of a product go.

use std::ops::Range;

use super::finish::Finish;
use super::kernel::Kernel;
use super::rows::put;
use crate::cpu::lanes::{LANES, Lanes};
use crate::cpu::panels::Element;
use crate::cpu::parallel::SharedMut;

/// Where the rows of a product go.
pub(crate) enum Out<'a, A> {
    /// Rows of f32.
    Rows(OutRows<'a>),
    /// The A of the next product: `[n_rows, n_steps]`, tiled alike.
    Packed(SharedMut<A>),
}

/// `c[row_idx[r]] = gate[r] · y[r] + residual[row_idx[r]]`
pub(crate) struct OutRows<'a> {
    /// `[_, n_out]`
    pub(crate) c: SharedMut<f32>,
    /// Row of `c` of each row; in order where there is none.
    pub(crate) idx: Option<&'a [usize]>,
    /// Factor of each row.
    pub(crate) gate: Option<&'a [f32]>,
    /// `[_, n_out]`
    pub(crate) residual: Option<&'a [f32]>,
    /// How many rows come before these in other parts.
    pub(crate) first_row: usize,
    /// What is done with rows that are whole.
    pub(crate) finish: Option<&'a dyn Finish>,
}

impl<A> Out<'_, A> {
    /// Does what is to be done with rows that are whole.
    ///
    /// # Safety
    /// As [`Finish::finish`].
    pub(super) unsafe fn finish(&self, rows: Range<usize>) {
        let Out::Rows(out) = self else { return };
        if let Some(finish) = out.finish {
            // SAFETY: the caller's promise.
            unsafe { finish.finish(out.first_row + rows.start..out.first_row + rows.end) };
        }
    }

    /// Stores a tile of finished results `[rows, panels]`, whose first column is `first_col` of
    /// `n_out`.
    ///
    /// # Safety
    /// The machine has `K::ISA`; there is room for these rows, and nobody else has these columns of
    /// them.
    #[inline(always)]
    pub(super) unsafe fn put<K: Kernel<A = A>>(
        &self,
        rows: Range<usize>,
        first_col: usize,
        n_out: usize,
        tile: &[[f32; LANES]],
    ) {
        let n_panels = tile.len() / rows.len();
        // SAFETY: the caller's promise; the tile's steps lie where it starts.
        unsafe {
            match self {
                Out::Rows(out) => {
                    for (i, y) in tile.iter().enumerate() {
                        let col = first_col + i % n_panels * LANES;
                        let y = K::Sums::load_f32(y.as_ptr());
                        out.put(rows.start + i / n_panels, col, n_out, &[y]);
                    }
                }
                Out::Packed(out) => {
                    let step = K::Weight::STEP;
                    let width = (n_panels * LANES).min(n_out - first_col);
                    let to = out.ptr().add(rows.start * n_out.div_ceil(step));
                    for from in (0..width).step_by(LANES * step) {
                        let cols = from..width.min(from + LANES * step);
                        let to = to.add((first_col + from) / step * rows.len());
                        let row = |r: usize| {
                            &tile[r * n_panels..][..n_panels].as_flattened()[cols.clone()]
                        };
                        put::<K>(rows.len(), row, to, cols.len().div_ceil(step));
                    }
                }
            }
        }
    }
}

impl OutRows<'_> {
    /// Where some consecutive rows go, each of `n_out` columns.
    pub(crate) fn part(&self, part: &Range<usize>, n_out: usize) -> Self {
        // Rows that are named by their index stay where they are.
        let at = match self.idx {
            Some(_) => 0,
            None => part.start * n_out,
        };
        Self {
            c: self.c.skip(at),
            idx: self.idx.map(|idx| &idx[part.clone()]),
            gate: self.gate.map(|gate| &gate[part.clone()]),
            residual: self.residual.map(|residual| &residual[at..]),
            first_row: self.first_row + part.start,
            finish: self.finish,
        }
    }

    /// Stores columns of one row from `first_col` on, sixteen at a time or as many as there are.
    ///
    /// # Safety
    /// The machine has the instructions of `L`; the row is there, and nobody else has these columns
    /// of it.
    #[inline(always)]
    pub(super) unsafe fn put<L: Lanes>(
        &self,
        row: usize,
        first_col: usize,
        n_out: usize,
        values: &[L],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let gate = L::splat(self.gate.map_or(1.0, |gate| gate[row]));
            let start = self.idx.map_or(row, |idx| idx[row]) * n_out;
            for (i, &y) in values.iter().enumerate() {
                let col = first_col + i * LANES;
                let width = LANES.min(n_out - col);
                // Added to zero first, as a token's sum over several experts is elsewhere.
                let mut y = L::zero().add_product(gate, y);
                y = match self.residual {
                    Some(residual) => {
                        let residual = load_some::<L>(&residual[start + col..][..width]);
                        residual.add_product(y, L::splat(1.0))
                    }
                    None => L::zero().add_product(y, L::splat(1.0)),
                };
                let to = self.c.ptr().add(start + col);
                if width == LANES {
                    y.store(to);
                } else {
                    let mut lanes = [0.0; LANES];
                    y.store(lanes.as_mut_ptr());
                    std::slice::from_raw_parts_mut(to, width).copy_from_slice(&lanes[..width]);
                }
            }
        }
    }
}

/// The first sixteen numbers, or as many as there are and zeros.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn load_some<L: Lanes>(from: &[f32]) -> L {
    let mut padded = [0.0; LANES];
    let lanes = from.first_chunk().unwrap_or_else(|| {
        padded[..from.len()].copy_from_slice(from);
        &padded
    });
    // SAFETY: the caller's promise; there are sixteen numbers.
    unsafe { L::load_f32(lanes.as_ptr()) }
}
