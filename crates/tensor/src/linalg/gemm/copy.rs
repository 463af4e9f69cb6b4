//! Copies between layouts, where no tile can read or store a matrix as it lies.

use crate::cpu::lanes::LANES;
use crate::linalg::{MatMut, MatRef, Scratch};

/// The same matrix with contiguous rows, `row_stride` values apart.
pub(super) fn copy<'a>(from: MatRef<'_>, row_stride: usize, to: &'a mut Scratch) -> MatRef<'a> {
    let (n_rows, n_cols) = (from.n_rows, from.n_cols);
    let data = to.room(n_rows * row_stride);
    // In squares, so that lines of either side are used whole while they are near.
    for first_row in (0..n_rows).step_by(LANES) {
        let rows = first_row..n_rows.min(first_row + LANES);
        for first_col in (0..n_cols).step_by(LANES) {
            let cols = first_col..n_cols.min(first_col + LANES);
            for i in rows.clone() {
                let to = &mut data[i * row_stride..][cols.clone()];
                for (to, j) in to.iter_mut().zip(cols.clone()) {
                    *to = from.data[i * from.row_stride + j * from.col_stride];
                }
            }
        }
    }
    MatRef {
        data,
        n_rows,
        n_cols,
        row_stride,
        col_stride: 1,
    }
}

/// `c = sums + beta · c`, whose sums' rows are `row_stride` apart.
pub(super) fn add_scaled(sums: &[f32], row_stride: usize, beta: f32, c: &mut MatMut<'_>) {
    for first_row in (0..c.n_rows).step_by(LANES) {
        for j in 0..c.n_cols {
            for i in first_row..c.n_rows.min(first_row + LANES) {
                let c = &mut c.data[i * c.row_stride + j * c.col_stride];
                let sum = sums[i * row_stride + j];
                *c = match beta == 0.0 {
                    true => sum,
                    false => sum + beta * *c,
                };
            }
        }
    }
}

/// `c = beta · c`, without reading it where `beta` is 0.
pub(super) fn scale_in_place(beta: f32, c: &mut MatMut<'_>) {
    for i in 0..c.n_rows {
        for j in 0..c.n_cols {
            let c = &mut c.data[i * c.row_stride + j * c.col_stride];
            *c = if beta == 0.0 { 0.0 } else { beta * *c };
        }
    }
}
