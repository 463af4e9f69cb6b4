//! The seam between a rank and the other ranks.
//!
//! Counts are in elements and known to every rank beforehand (the batcher knows all lengths), so a
//! collective never exchanges metadata. Counts may be uneven and zero.

mod in_process;
mod solo;
mod tcp;

pub use in_process::{InProcess, in_process};
pub use solo::Solo;
pub use tcp::Tcp;

use std::time::Duration;

/// Communication among the ranks of one world. Every rank calls the same operations in the same
/// order with the same counts.
///
/// Sums are taken in rank order, so that results are bit for bit the same on every rank and in
/// every run.
pub trait Collective: Send {
    /// This rank, below [`Collective::world_size`].
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Concatenates all ranks' `send` in rank order.
    ///
    /// # Shapes
    /// - `send`: `[counts[rank]]`
    /// - `recv`: `[Σ counts]`
    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError>;

    /// Sums all ranks' `send` and keeps this rank's part.
    ///
    /// # Shapes
    /// - `send`: `[Σ counts]`
    /// - `recv`: `[counts[rank]]`
    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError>;

    /// Replaces `data` by the sum over ranks.
    fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError>;

    /// Replaces `data` by the root's.
    fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError>;
}

/// Why a collective failed. After an error the communicator is poisoned: every rank's next call
/// fails too, so nobody waits for a rank that is gone.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A length does not fit the counts.
    #[error("{op} on rank {rank}: {buffer} has {got} elements, expected {expected}")]
    Length {
        /// The operation.
        op: &'static str,
        /// Which buffer.
        buffer: &'static str,
        /// Who found it.
        rank: usize,
        /// What the counts say.
        expected: usize,
        /// What was passed.
        got: usize,
    },
    /// Another rank failed or left.
    #[error("{op} on rank {rank}: another rank of {world_size} failed")]
    Poisoned {
        /// The operation.
        op: &'static str,
        /// Who found it.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// The others did not come in time.
    #[error(
        "{op} on rank {rank}: the other ranks of {world_size} did not arrive within {waited:?}"
    )]
    Deadline {
        /// The operation.
        op: &'static str,
        /// Who waited.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// How long.
        waited: Duration,
    },
    /// What carries the messages failed.
    #[error("{op} on rank {rank} of {world_size}: {reason}")]
    Transport {
        /// The operation.
        op: &'static str,
        /// Who was told.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// In the transport's words.
        reason: String,
    },
}

/// Checks one buffer against its count.
fn check_length(
    op: &'static str,
    buffer: &'static str,
    rank: usize,
    expected: usize,
    got: usize,
) -> Result<(), CollectiveError> {
    if expected == got {
        return Ok(());
    }
    Err(CollectiveError::Length {
        op,
        buffer,
        rank,
        expected,
        got,
    })
}

/// Checks a call with a part for each rank: the counts, this rank's part, and all parts together.
fn check_counts(
    op: &'static str,
    end: &impl Collective,
    counts: &[usize],
    part: (&'static str, usize),
    whole: (&'static str, usize),
) -> Result<(), CollectiveError> {
    let rank = end.rank();
    check_length(op, "counts", rank, end.world_size(), counts.len())?;
    check_length(op, part.0, rank, counts[rank], part.1)?;
    check_length(op, whole.0, rank, counts.iter().sum(), whole.1)
}
