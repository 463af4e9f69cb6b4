//! A row as one element of MPI: counts and offsets are then in rows, so that 32 bits suffice for
//! matrices of more than 2³¹ numbers.

use mpi::ffi::{self, MPI_Datatype};

use super::comm::{Comm, datatype};
use crate::element::Kind;
use crate::error::MpiError;

/// A committed datatype of `row_len` consecutive numbers. The one that made it frees it before MPI is
/// finalised.
#[derive(Debug)]
pub(super) struct RowType {
    pub(super) row_len: usize,
    raw: MPI_Datatype,
}

impl RowType {
    /// Makes the type. `comm` reports failures.
    pub(super) fn new(comm: &Comm, kind: Kind, row_len: usize) -> Result<Self, MpiError> {
        let op = "MPI_Type_contiguous";
        let count = comm.count(op, "elements of a row", row_len)?;
        // SAFETY: a null handle is a valid value, overwritten by the next call.
        let mut raw = unsafe { ffi::RSMPI_DATATYPE_NULL };
        // SAFETY: the old type is one of MPI's own, and the handle is live.
        comm.call(op, |_| unsafe {
            ffi::MPI_Type_contiguous(count, datatype(kind), &raw mut raw)
        })?;
        let mut row_type = Self { row_len, raw };
        // SAFETY: the type was made above.
        comm.call("MPI_Type_commit", |_| unsafe {
            ffi::MPI_Type_commit(&raw mut row_type.raw)
        })?;
        Ok(row_type)
    }

    pub(super) fn raw(&self) -> MPI_Datatype {
        self.raw
    }
}

impl Drop for RowType {
    fn drop(&mut self) {
        // SAFETY: the type is freed once, here; its owner keeps MPI from being finalised. A failure
        // could only mean that it was no type.
        unsafe { ffi::MPI_Type_free(&raw mut self.raw) };
    }
}
