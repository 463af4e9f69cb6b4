//! What a caller can get wrong.

use crate::cpu::Isa;

/// Why an operation was refused. Nothing has been written then.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LinalgError {
    /// Two arguments disagree on a dimension.
    #[error("{op}: {dim} is {got}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The dimension's name.
        dim: &'static str,
        /// What the other argument says.
        expected: usize,
        /// What was found.
        got: usize,
    },
    /// A view reaches beyond its slice.
    #[error(
        "a matrix of {n_rows} x {n_cols} with strides {row_stride} and {col_stride} does not fit in \
         {got} values"
    )]
    View {
        /// Rows of the view.
        n_rows: usize,
        /// Columns of the view.
        n_cols: usize,
        /// Values from one row to the next.
        row_stride: usize,
        /// Values from one column to the next.
        col_stride: usize,
        /// Values of the slice.
        got: usize,
    },
    /// Two elements of a matrix to be written are the same value.
    #[error(
        "a matrix of {n_rows} x {n_cols} to be written overlaps itself with strides {row_stride} \
         and {col_stride}"
    )]
    Overlap {
        /// Rows of the view.
        n_rows: usize,
        /// Columns of the view.
        n_cols: usize,
        /// Values from one row to the next.
        row_stride: usize,
        /// Values from one column to the next.
        col_stride: usize,
    },
    /// Rows of a sparse matrix do not end where its entries do, or one ends before it begins.
    #[error("row {row} of a sparse matrix ends at entry {end}, expected {expected}")]
    RowEnd {
        /// The row.
        row: usize,
        /// Where it ends.
        end: usize,
        /// What it may be.
        expected: String,
    },
    /// A column of a sparse matrix lies outside of it, or is not beyond the one before in its row.
    #[error(
        "row {row} of a sparse matrix names column {col}, expected ascending columns below {n_cols}"
    )]
    Column {
        /// The row.
        row: usize,
        /// The column.
        col: u32,
        /// Columns of the matrix.
        n_cols: usize,
    },
    /// A number names something that is not there.
    #[error("{op}: {what} is {got}, expected below {limit}")]
    Index {
        /// The operation.
        op: &'static str,
        /// What it names.
        what: &'static str,
        /// The number.
        got: usize,
        /// How many of them there are.
        limit: usize,
    },
    /// The machine lacks an instruction set that was asked for.
    #[error("this machine has no {0} instructions")]
    Isa(Isa),
    /// Threads could not be started.
    #[error("cannot start {n_threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        n_threads: usize,
        /// What the system said.
        reason: String,
    },
}

/// Compares one dimension of two arguments.
pub(super) fn check(
    op: &'static str,
    dim: &'static str,
    expected: usize,
    got: usize,
) -> super::Result<()> {
    match expected == got {
        true => Ok(()),
        false => Err(LinalgError::Shape {
            op,
            dim,
            expected,
            got,
        }),
    }
}

/// The instruction set, if this machine has it: what every `unsafe` call of a kernel relies on.
pub(super) fn checked(isa: Isa) -> super::Result<Isa> {
    match Isa::available().contains(&isa) {
        true => Ok(isa),
        false => Err(LinalgError::Isa(isa)),
    }
}
