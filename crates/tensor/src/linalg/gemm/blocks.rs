//! A product cut into tiles, in an order that keeps what is read again in the caches.

use std::ops::Range;

use super::tile::{Dot, Outer, Scale, Tiles};
use crate::cpu::lanes::LANES;
use crate::linalg::{MatMut, MatRef};

/// Most steps between two visits of a tile of C: a tile's rows of B are 40 to 128 KiB then.
const MOST_STEPS: usize = 512;

/// The same of dot tiles, whose sums across lanes cost more.
const MOST_DOT_STEPS: usize = 2048;

/// Values of A that stay in the second-level cache while columns pass by: 256 KiB.
const BLOCK: usize = 64 << 10;

/// `n` cut into nearly equal parts of at most `most`. Divides once, however often it is gone through:
/// a small product is over in the time of some thirty divisions.
#[derive(Clone, Copy)]
struct Parts {
    n_parts: usize,
    size: usize,
    /// How many of the first parts are larger by one.
    n_larger: usize,
}

impl Parts {
    fn of(n: usize, most: usize) -> Self {
        if n <= most {
            return Self {
                n_parts: usize::from(n > 0),
                size: n,
                n_larger: 0,
            };
        }
        let n_parts = n.div_ceil(most.max(1));
        Self {
            n_parts,
            size: n / n_parts,
            n_larger: n % n_parts,
        }
    }

    fn largest(self) -> usize {
        self.size + usize::from(self.n_larger > 0)
    }

    fn iter(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.n_parts).map(move |i| {
            let start = i * self.size + i.min(self.n_larger);
            start..start + self.size + usize::from(i < self.n_larger)
        })
    }
}

/// A product in outer tiles. Rows of B and of C are contiguous.
pub(super) fn outer_blocks<T: Tiles>(
    scale: Scale,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: &mut MatMut<'_>,
) {
    let (m, n, k) = (a.n_rows, b.n_cols, a.n_cols);
    debug_assert!(b.col_stride == 1 || n == 1);
    debug_assert!(c.col_stride == 1 || n == 1);
    let all_steps = Parts::of(k, MOST_STEPS);
    let all_rows = Parts::of(m, BLOCK / all_steps.largest().max(1));
    let n_groups = n.div_ceil(LANES);
    for steps in all_steps.iter() {
        let beta = if steps.start == 0 { scale.beta } else { 1.0 };
        for rows in all_rows.iter() {
            let tiles = Parts::of(rows.len(), T::MOST_ROWS);
            for groups in Parts::of(n_groups, T::most_groups(tiles.largest())).iter() {
                for tile in tiles.iter() {
                    let row = rows.start + tile.start;
                    let first = groups.start * LANES;
                    let n_last = LANES.min(n - (groups.end - 1) * LANES);
                    let tile_at = Outer {
                        // SAFETY: row and step lie within A, step and column within B, row and
                        // column within C, by the checks of their views and of the shapes.
                        a: unsafe {
                            a.data
                                .as_ptr()
                                .add(row * a.row_stride + steps.start * a.col_stride)
                        },
                        a_row: a.row_stride,
                        a_step: a.col_stride,
                        // SAFETY: as above.
                        b: unsafe { b.data.as_ptr().add(steps.start * b.row_stride + first) },
                        b_step: b.row_stride,
                        n_steps: steps.len(),
                        // SAFETY: as above.
                        c: unsafe { c.data.as_mut_ptr().add(row * c.row_stride + first) },
                        c_row: c.row_stride,
                        n_last,
                        scale: Scale { beta, ..scale },
                    };
                    // SAFETY: as above; `Gemm` has checked the instructions.
                    unsafe { T::outer(tile.len(), groups.len(), &tile_at) };
                }
            }
        }
    }
}

/// A product in dot tiles. Rows of A and of C and columns of B are contiguous.
pub(super) fn dot_blocks<T: Tiles>(scale: Scale, a: MatRef<'_>, b: MatRef<'_>, c: &mut MatMut<'_>) {
    let (m, n, k) = (a.n_rows, b.n_cols, a.n_cols);
    debug_assert!(a.col_stride == 1 && b.row_stride == 1);
    debug_assert!(c.col_stride == 1 || n == 1);
    let (most_rows, most_cols) = T::MOST_DOT;
    let all_steps = Parts::of(k, MOST_DOT_STEPS);
    let all_rows = Parts::of(m, BLOCK / all_steps.largest().max(1));
    let all_cols = Parts::of(n, most_cols);
    for steps in all_steps.iter() {
        let beta = if steps.start == 0 { scale.beta } else { 1.0 };
        for rows in all_rows.iter() {
            let tiles = Parts::of(rows.len(), most_rows);
            for cols in all_cols.iter() {
                for tile in tiles.iter() {
                    let row = rows.start + tile.start;
                    let tile_at = Dot {
                        // SAFETY: row and step lie within A, column and step within B, row and
                        // column within C, by the checks of their views and of the shapes.
                        a: unsafe { a.data.as_ptr().add(row * a.row_stride + steps.start) },
                        a_row: a.row_stride,
                        // SAFETY: as above.
                        b: unsafe { b.data.as_ptr().add(cols.start * b.col_stride + steps.start) },
                        b_col: b.col_stride,
                        n_steps: steps.len(),
                        // SAFETY: as above.
                        c: unsafe { c.data.as_mut_ptr().add(row * c.row_stride + cols.start) },
                        c_row: c.row_stride,
                        scale: Scale { beta, ..scale },
                    };
                    // SAFETY: as above; `Gemm` has checked the instructions.
                    unsafe { T::dot(tile.len(), cols.len(), &tile_at) };
                }
            }
        }
    }
}
