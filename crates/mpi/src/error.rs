//! What can go wrong between the ranks of a job.

/// Why a call failed. Only [`MpiError::Elsewhere`] and [`MpiError::Disagree`] come to every rank; after
/// any other the remaining ranks may be waiting, and the job has to be ended (`World::abort`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    /// The cargo feature `mpi` was off.
    #[error("this program was built without MPI: build it with the cargo feature `mpi`")]
    NotBuilt,
    /// MPI is initialised once in the life of a process.
    #[error("MPI has already been initialised in this process")]
    Initialised,
    /// The library cannot be used beside other threads.
    #[error("MPI supports the threading level {got}, expected at least Funneled")]
    Threading {
        /// What it offers.
        got: String,
    },
    /// A call of MPI failed.
    #[error("{op} on rank {rank} of {world_size} failed with code {code}: {message}")]
    Call {
        /// The function of MPI.
        op: &'static str,
        /// Who called.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// What it returned.
        code: i32,
        /// What MPI says of the code.
        message: String,
    },
    /// An earlier call on this communicator failed, so its ranks are out of step.
    #[error("{op} on rank {rank} of {world_size}: an earlier call on this communicator failed")]
    Poisoned {
        /// The operation.
        op: &'static str,
        /// Who called.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// MPI was initialised for calls from one thread.
    #[error("{op} on rank {rank}: called from another thread than the one that initialised MPI")]
    Thread {
        /// The operation.
        op: &'static str,
        /// Who called.
        rank: usize,
    },
    /// The job was ended while a communicator of it was still in use.
    #[error("{op} on rank {rank}: MPI has been finalised")]
    Finalised {
        /// The operation.
        op: &'static str,
        /// Who called.
        rank: usize,
    },
    /// A buffer does not have the length that the links or counts ask for.
    #[error("{op} on rank {rank}: {buffer} has {got} elements, expected {expected}")]
    Length {
        /// The operation.
        op: &'static str,
        /// Who found it.
        rank: usize,
        /// Which buffer.
        buffer: &'static str,
        /// What it should have.
        expected: usize,
        /// What it has.
        got: usize,
    },
    /// A buffer is no whole number of rows.
    #[error("{op} on rank {rank}: {n_elements} elements are no whole number of rows of {row_len}")]
    Rows {
        /// The operation.
        op: &'static str,
        /// Who found it.
        rank: usize,
        /// What there is.
        n_elements: usize,
        /// Elements a row.
        row_len: usize,
    },
    /// MPI counts in 32 bits.
    #[error("{op} on rank {rank}: {got} {what} do not fit the 32-bit counts of MPI")]
    TooMany {
        /// The operation.
        op: &'static str,
        /// Who found it.
        rank: usize,
        /// What is counted.
        what: &'static str,
        /// How many.
        got: usize,
    },
    /// A link to a rank that does not exist.
    #[error("the links of rank {rank} name rank {other}, and there are {world_size} ranks")]
    UnknownRank {
        /// Whose links.
        rank: usize,
        /// The one named.
        other: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// Two links in one direction between the same two ranks.
    #[error("the links of rank {rank} {direction} rank {other} twice")]
    TwiceNamed {
        /// Whose links.
        rank: usize,
        /// `send to` or `receive from`.
        direction: &'static str,
        /// The one named twice.
        other: usize,
    },
    /// A row is to be sent that the rank does not hold.
    #[error("the links of rank {rank} send row {row} to rank {to}, and it holds {n_local} rows")]
    UnknownRow {
        /// Whose links.
        rank: usize,
        /// The row.
        row: usize,
        /// To whom.
        to: usize,
        /// Rows there are.
        n_local: usize,
    },
    /// Sender and receiver do not mean the same number of rows.
    #[error("rank {rank} expects {expected} rows from rank {from}, which sends {got}")]
    Mismatch {
        /// The receiver.
        rank: usize,
        /// The sender.
        from: usize,
        /// What the receiver's links say.
        expected: u64,
        /// What the sender's links say.
        got: u64,
    },
    /// This rank was ready, others were not.
    #[error("{op} on rank {rank}: {n_failed} other ranks of {world_size} failed")]
    Elsewhere {
        /// The operation.
        op: &'static str,
        /// Who was told.
        rank: usize,
        /// How many failed.
        n_failed: u64,
        /// Number of ranks.
        world_size: usize,
    },
    /// The ranks were started with different things.
    #[error(
        "the ranks do not agree on {what}: rank {rank} of {world_size} has {here}, the smallest is {min} and the largest {max}"
    )]
    Disagree {
        /// On what.
        what: &'static str,
        /// Who was told.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// This rank's value.
        here: u64,
        /// The smallest of all ranks.
        min: u64,
        /// The largest of all ranks.
        max: u64,
    },
    /// The system refused the handler that prints a sentence when the job ends.
    #[error("cannot handle SIGTERM on rank {rank}: error {code} of the system")]
    Signal {
        /// Who asked.
        rank: usize,
        /// `errno`.
        code: i32,
    },
}
