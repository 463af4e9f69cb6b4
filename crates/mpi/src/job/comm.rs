//! One communicator, whose failures are returned as errors.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};

use mpi::ffi::{self, MPI_Comm, MPI_Datatype};

use crate::element::{Element, Kind, Number};
use crate::error::MpiError;
use crate::plan::count_of;

/// A live communicator with this process' place in it.
#[derive(Debug)]
pub(super) struct Comm {
    raw: MPI_Comm,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// A call has failed, so ranks may be at different operations; never cleared.
    is_poisoned: Cell<bool>,
}

impl Comm {
    /// Takes a communicator and makes its failures errors. Those of calls that belong to no
    /// communicator go to the world's.
    ///
    /// # Safety
    /// MPI is initialised, and `raw` is a live communicator for as long as the result is used.
    pub(super) unsafe fn new(raw: MPI_Comm) -> Result<Self, MpiError> {
        let mut comm = Self {
            raw,
            rank: 0,
            world_size: 1,
            is_poisoned: Cell::new(false),
        };
        // SAFETY: the caller vouches for `raw`, and the handler is one of MPI's own.
        comm.call("MPI_Comm_set_errhandler", |raw| unsafe {
            ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN)
        })?;
        let (mut rank, mut size) = (0, 1);
        // SAFETY: both pointers are to live integers.
        comm.call("MPI_Comm_rank", |raw| unsafe {
            ffi::MPI_Comm_rank(raw, &raw mut rank)
        })?;
        // SAFETY: as above.
        comm.call("MPI_Comm_size", |raw| unsafe {
            ffi::MPI_Comm_size(raw, &raw mut size)
        })?;
        comm.rank = rank.unsigned_abs() as usize;
        comm.world_size = size.unsigned_abs() as usize;
        Ok(comm)
    }

    pub(super) fn raw(&self) -> MPI_Comm {
        self.raw
    }

    /// Calls a function of MPI; a failure poisons the communicator.
    pub(super) fn call(
        &self,
        op: &'static str,
        call: impl FnOnce(MPI_Comm) -> c_int,
    ) -> Result<(), MpiError> {
        let (rank, world_size) = (self.rank, self.world_size);
        if self.is_poisoned.get() {
            return Err(MpiError::Poisoned {
                op,
                rank,
                world_size,
            });
        }
        let code = call(self.raw);
        if code == 0 {
            return Ok(()); // MPI_SUCCESS is 0 by the standard.
        }
        self.is_poisoned.set(true);
        Err(MpiError::Call {
            op,
            rank,
            world_size,
            code,
            message: message_of(code),
        })
    }

    /// A count as MPI takes it.
    pub(super) fn count(
        &self,
        op: &'static str,
        what: &'static str,
        n: usize,
    ) -> Result<c_int, MpiError> {
        count_of(op, self.rank, what, n)
    }

    /// Refuses a buffer of the wrong length.
    pub(super) fn check_length(
        &self,
        op: &'static str,
        buffer: &'static str,
        expected: usize,
        got: usize,
    ) -> Result<(), MpiError> {
        if expected == got {
            return Ok(());
        }
        Err(MpiError::Length {
            op,
            rank: self.rank,
            buffer,
            expected,
            got,
        })
    }

    /// Replaces each value by the smallest of all ranks'.
    pub(super) fn all_min<T: Number>(&self, values: &mut [T]) -> Result<(), MpiError> {
        self.extremes(values, Extreme::Smallest)
    }

    /// Replaces each value by the largest of all ranks'.
    pub(super) fn all_max<T: Number>(&self, values: &mut [T]) -> Result<(), MpiError> {
        self.extremes(values, Extreme::Largest)
    }

    fn extremes<T: Number>(&self, values: &mut [T], extreme: Extreme) -> Result<(), MpiError> {
        let op = "MPI_Allreduce";
        let count = self.count(op, "values", values.len())?;
        let here = values.to_vec();
        // SAFETY: both buffers hold `count` elements of the kind named, and they do not overlap;
        // the operation is one of MPI's own.
        self.call(op, |comm| unsafe {
            let operation = match extreme {
                Extreme::Smallest => ffi::RSMPI_MIN,
                Extreme::Largest => ffi::RSMPI_MAX,
            };
            let (send, recv) = (start(&here), start_mut(values));
            ffi::MPI_Allreduce(send, recv, count, datatype(T::KIND), operation, comm)
        })
    }

    /// Fails on every rank unless all have the same value.
    pub(super) fn agree(&self, what: &'static str, here: u64) -> Result<(), MpiError> {
        // The smallest complement is the complement of the largest: one reduction for both.
        let mut bounds = [here, !here];
        self.all_min(&mut bounds)?;
        let (min, max) = (bounds[0], !bounds[1]);
        if min == max {
            return Ok(());
        }
        Err(MpiError::Disagree {
            what,
            rank: self.rank,
            world_size: self.world_size,
            here,
            min,
            max,
        })
    }
}

#[derive(Clone, Copy)]
enum Extreme {
    Smallest,
    Largest,
}

/// Where a buffer to be read starts. Rust's pointer to no bytes at all is 1, and that is how Open MPI
/// writes `MPI_IN_PLACE`: an empty buffer is shown as one that lies somewhere.
pub(super) fn start<T: Element>(buffer: &[T]) -> *const c_void {
    if buffer.is_empty() {
        return (&raw const NOWHERE).cast();
    }
    buffer.as_ptr().cast()
}

/// Where a buffer to be written starts; see [`start`]. Nothing is written to an empty one.
pub(super) fn start_mut<T: Element>(buffer: &mut [T]) -> *mut c_void {
    if buffer.is_empty() {
        return start(buffer).cast_mut();
    }
    buffer.as_mut_ptr().cast()
}

static NOWHERE: u64 = 0;

/// MPI's name for a kind of number.
pub(super) fn datatype(kind: Kind) -> MPI_Datatype {
    // SAFETY: the shim of the crate `mpi` defines these once and never writes to them.
    unsafe {
        match kind {
            Kind::U8 => ffi::RSMPI_UINT8_T,
            Kind::U64 => ffi::RSMPI_UINT64_T,
            Kind::F32 => ffi::RSMPI_FLOAT,
            Kind::F64 => ffi::RSMPI_DOUBLE,
        }
    }
}

/// What MPI says of an error code.
fn message_of(code: c_int) -> String {
    let mut buffer = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut len = 0;
    let first = buffer.as_mut_ptr().cast::<c_char>();
    // SAFETY: the buffer is as long as the standard asks for, and the length is a live integer.
    let failed = unsafe { ffi::MPI_Error_string(code, first, &raw mut len) } != 0;
    let text = buffer.get(..len.unsigned_abs() as usize);
    match text {
        Some(text) if !failed => String::from_utf8_lossy(text).trim().to_owned(),
        _ => "unknown to MPI".to_owned(),
    }
}
