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

/// `n` cut into nearly equal parts of at most `most`.
fn parts(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let n_parts = n.div_ceil(most.max(1));
    let (size, n_larger) = (n / n_parts.max(1), n % n_parts.max(1));
    (0..n_parts).map(move |i| {
        let start = i * size + i.min(n_larger);
        start..start + size + usize::from(i < n_larger)
    })
}

/// The largest part of [`parts`].
fn largest_part(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most.max(1)).max(1))
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
    let most_rows = BLOCK / largest_part(k, MOST_STEPS).max(1);
    let n_groups = n.div_ceil(LANES);
    for steps in parts(k, MOST_STEPS) {
        let beta = if steps.start == 0 { scale.beta } else { 1.0 };
        for rows in parts(m, most_rows) {
            let tile_rows = largest_part(rows.len(), T::MOST_ROWS);
            for groups in parts(n_groups, T::most_groups(tile_rows)) {
                for tile in parts(rows.len(), T::MOST_ROWS) {
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
    let most_rows_at_once = BLOCK / largest_part(k, MOST_DOT_STEPS).max(1);
    for steps in parts(k, MOST_DOT_STEPS) {
        let beta = if steps.start == 0 { scale.beta } else { 1.0 };
        for rows in parts(m, most_rows_at_once) {
            for cols in parts(n, most_cols) {
                for tile in parts(rows.len(), most_rows) {
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
