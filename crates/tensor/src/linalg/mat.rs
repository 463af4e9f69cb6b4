//! Slices seen as matrices.

use super::{LinalgError, Result};

/// A matrix to be read: element `(i, j)` is `data[i · row_stride + j · col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    pub(super) data: &'a [f32],
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// A matrix to be written, laid out as [`MatRef`]; no two elements are the same value.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// `[n_rows, n_cols]`, row after row.
    ///
    /// # Errors
    /// [`LinalgError::View`] if `data` is shorter. It may be longer.
    pub fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> Result<Self> {
        Self::with_strides(data, n_rows, n_cols, n_cols, 1)
    }

    /// Any layout.
    ///
    /// # Errors
    /// [`LinalgError::View`] if an element lies beyond `data`.
    pub fn with_strides(
        data: &'a [f32],
        n_rows: usize,
        n_cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self> {
        check_view(data.len(), n_rows, n_cols, row_stride, col_stride)?;
        Ok(Self {
            data,
            n_rows,
            n_cols,
            row_stride,
            col_stride,
        })
    }

    /// The transpose, of the same values.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }
}

impl<'a> MatMut<'a> {
    /// `[n_rows, n_cols]`, row after row.
    ///
    /// # Errors
    /// [`LinalgError::View`] if `data` is shorter. It may be longer.
    pub fn new(data: &'a mut [f32], n_rows: usize, n_cols: usize) -> Result<Self> {
        Self::with_strides(data, n_rows, n_cols, n_cols, 1)
    }

    /// Any layout in which rows or columns do not interleave.
    ///
    /// # Errors
    /// [`LinalgError::View`] if an element lies beyond `data`, [`LinalgError::Overlap`] if elements
    /// may coincide.
    pub fn with_strides(
        data: &'a mut [f32],
        n_rows: usize,
        n_cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self> {
        check_view(data.len(), n_rows, n_cols, row_stride, col_stride)?;
        // Within the slice already, so the products below are too.
        let row = n_cols.saturating_sub(1) * col_stride + 1;
        let col = n_rows.saturating_sub(1) * row_stride + 1;
        let is_distinct = |n: usize, stride: usize| n <= 1 || stride > 0;
        let is_apart = (n_rows <= 1 || row_stride >= row) || (n_cols <= 1 || col_stride >= col);
        let is_empty = n_rows == 0 || n_cols == 0;
        let are_distinct = is_distinct(n_rows, row_stride) && is_distinct(n_cols, col_stride);
        let may_coincide = !(is_apart && are_distinct);
        if may_coincide && !is_empty {
            return Err(LinalgError::Overlap {
                n_rows,
                n_cols,
                row_stride,
                col_stride,
            });
        }
        Ok(Self {
            data,
            n_rows,
            n_cols,
            row_stride,
            col_stride,
        })
    }

    /// The transpose, of the same values.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// The same matrix, lent for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut {
            data: self.data,
            ..*self
        }
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }
}

/// Checks that the last element lies within `len` values; what every kernel relies on.
fn check_view(
    len: usize,
    n_rows: usize,
    n_cols: usize,
    row_stride: usize,
    col_stride: usize,
) -> Result<()> {
    let n_needed = || {
        let last_row = (n_rows - 1).checked_mul(row_stride)?;
        let last_col = (n_cols - 1).checked_mul(col_stride)?;
        last_row.checked_add(last_col)?.checked_add(1)
    };
    let fits = n_rows == 0 || n_cols == 0 || n_needed().is_some_and(|n| n <= len);
    match fits {
        true => Ok(()),
        false => Err(LinalgError::View {
            n_rows,
            n_cols,
            row_stride,
            col_stride,
            got: len,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_beyond_its_slice_is_refused() {
        let data = [0.0; 12];
        assert!(MatRef::new(&data, 3, 4).is_ok());
        assert!(MatRef::new(&data, 0, usize::MAX).is_ok());
        assert!(MatRef::with_strides(&data, 3, 4, 1, 3).is_ok());
        for (n_rows, n_cols, row, col) in [
            (4, 4, 4, 1),
            (3, 4, 5, 1),
            (3, 4, usize::MAX, 1),
            (usize::MAX, usize::MAX, 0, usize::MAX),
        ] {
            let view = MatRef::with_strides(&data, n_rows, n_cols, row, col);
            assert!(matches!(view, Err(LinalgError::View { got: 12, .. })));
        }
    }

    #[test]
    fn a_view_that_overlaps_itself_is_not_for_writing() {
        let mut data = [0.0; 12];
        for (row, col) in [(0, 1), (1, 0), (3, 1), (1, 2), (2, 2)] {
            let view = MatMut::with_strides(&mut data, 3, 4, row, col);
            assert!(
                matches!(view, Err(LinalgError::Overlap { .. })),
                "{row} {col}"
            );
        }
        for (row, col) in [(4, 1), (1, 3)] {
            assert!(MatMut::with_strides(&mut data, 3, 4, row, col).is_ok());
        }
        assert!(MatMut::with_strides(&mut data, 1, 4, 0, 1).is_ok());
    }
}
