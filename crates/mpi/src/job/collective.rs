//! The tensor layer's collective on MPI.
//!
//! Sums are not left to `MPI_Reduce`, whose order is its own: every rank receives the parts of its
//! share and adds them up in rank order, from zero, as the in-process collective does.

use std::cell::Cell;
use std::thread::{self, ThreadId};

use moeshard_tensor::collective::{self, CollectiveError};
use mpi::ffi;

use super::comm::{Comm, datatype, start, start_mut};
use super::world::World;
use crate::element::Sealed;
use crate::error::MpiError;

thread_local! {
    /// Set on the thread that initialised MPI once it has finalised it.
    static IS_FINALISED: Cell<bool> = const { Cell::new(false) };
}

/// Notes that this thread finalises MPI.
pub(super) fn finalised() {
    IS_FINALISED.set(true);
}

/// Ranks of a job as a [`Collective`](collective::Collective). It may be moved to another thread, as
/// the trait asks for, but answers on the thread that initialised MPI only, and until that finalises it.
#[derive(Debug)]
pub struct Collective {
    comm: Comm,
    thread: ThreadId,
    /// The job, if nobody else keeps it.
    world: Option<World>,
}

// SAFETY: the communicator and the world, which alone keep this from being `Send`, are used and freed
// only on the thread that made them; `comm` and `drop` compare.
unsafe impl Send for Collective {}

impl Collective {
    pub(super) fn new(world: &Comm) -> Result<Self, MpiError> {
        // SAFETY: a null handle is a valid value, overwritten by the next call.
        let mut raw = unsafe { ffi::RSMPI_COMM_NULL };
        // SAFETY: the world's communicator is live, and so is the handle.
        world.call("MPI_Comm_dup", |world| unsafe {
            ffi::MPI_Comm_dup(world, &raw mut raw)
        })?;
        Ok(Self {
            // SAFETY: the communicator was just made; dropping this frees it, and every use checks
            // that MPI is not finalised.
            comm: unsafe { Comm::new(raw) }?,
            thread: thread::current().id(),
            world: None,
        })
    }

    /// Has the job end with this collective.
    pub(super) fn keep(mut self, world: World) -> Self {
        self.world = Some(world);
        self
    }

    /// The communicator, where it may be used.
    fn comm(&self, op: &'static str) -> Result<&Comm, MpiError> {
        let rank = self.comm.rank;
        if thread::current().id() != self.thread {
            return Err(MpiError::Thread { op, rank });
        }
        if IS_FINALISED.get() {
            return Err(MpiError::Finalised { op, rank });
        }
        Ok(&self.comm)
    }

    /// Checks the counts; returns them as MPI takes them, with offsets.
    fn checked(
        &self,
        op: &'static str,
        counts: &[usize],
        part: (&'static str, usize),
        whole: (&'static str, usize),
    ) -> Result<Shares, MpiError> {
        let comm = self.comm(op)?;
        comm.check_length(op, "counts", comm.world_size, counts.len())?;
        comm.check_length(op, part.0, counts[comm.rank], part.1)?;
        comm.check_length(op, whole.0, counts.iter().sum(), whole.1)?;
        let mut shares = Shares::default();
        let mut offset = 0;
        for &count in counts {
            shares.counts.push(comm.count(op, "elements", count)?);
            shares.offsets.push(comm.count(op, "elements", offset)?);
            offset += count;
        }
        Ok(shares)
    }

    fn gather(&self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), MpiError> {
        let op = "all_gather";
        let shares = self.checked(op, counts, ("send", send.len()), ("recv", recv.len()))?;
        let comm = self.comm(op)?;
        let here = shares.counts[comm.rank];
        // SAFETY: `send` holds this rank's count and `recv` the sum of all, which was checked.
        comm.call("MPI_Allgatherv", |raw| unsafe {
            let kind = datatype(f32::KIND);
            ffi::MPI_Allgatherv(
                start(send),
                here,
                kind,
                start_mut(recv),
                shares.counts.as_ptr(),
                shares.offsets.as_ptr(),
                kind,
                raw,
            )
        })
    }

    fn sum_parts(&self, send: &[f32], counts: &[usize], recv: &mut [f32]) -> Result<(), MpiError> {
        let op = "reduce_scatter";
        let shares = self.checked(op, counts, ("recv", recv.len()), ("send", send.len()))?;
        let comm = self.comm(op)?;
        let n = recv.len();
        let from_each = vec![shares.counts[comm.rank]; comm.world_size];
        let mut parts = vec![0.0; n * comm.world_size]; // [world_size, n]
        let offsets: Result<Vec<i32>, MpiError> = (0..comm.world_size)
            .map(|rank| comm.count(op, "elements", rank * n))
            .collect();
        let offsets = offsets?;
        // SAFETY: `send` holds the sum of the counts, which was checked, and `parts` as many rows of
        // this rank's count as there are ranks.
        comm.call("MPI_Alltoallv", |raw| unsafe {
            let kind = datatype(f32::KIND);
            ffi::MPI_Alltoallv(
                start(send),
                shares.counts.as_ptr(),
                shares.offsets.as_ptr(),
                kind,
                start_mut(&mut parts),
                from_each.as_ptr(),
                offsets.as_ptr(),
                kind,
                raw,
            )
        })?;
        recv.fill(0.0);
        for part in parts.chunks_exact(n.max(1)) {
            for (sum, x) in recv.iter_mut().zip(part) {
                *sum += x;
            }
        }
        Ok(())
    }

    /// Each rank sums its share, then all gather the shares.
    fn sum_all(&self, data: &mut [f32]) -> Result<(), MpiError> {
        let counts = even_shares(data.len(), self.comm.world_size);
        let mut share = vec![0.0; counts[self.comm.rank]];
        self.sum_parts(data, &counts, &mut share)?;
        self.gather(&share, &counts, data)
    }

    fn copy_root(&self, data: &mut [f32], root: usize) -> Result<(), MpiError> {
        let op = "broadcast";
        let comm = self.comm(op)?;
        let count = comm.count(op, "elements", data.len())?;
        let root = comm.count(op, "ranks", root)?;
        // SAFETY: the buffer holds `count` numbers; MPI checks the root.
        comm.call("MPI_Bcast", |raw| unsafe {
            ffi::MPI_Bcast(start_mut(data), count, datatype(f32::KIND), root, raw)
        })
    }

    /// The error as the trait has it.
    fn named(&self, op: &'static str, result: Result<(), MpiError>) -> Result<(), CollectiveError> {
        let (rank, world_size) = (self.comm.rank, self.comm.world_size);
        result.map_err(|error| match error {
            MpiError::Length {
                buffer,
                expected,
                got,
                ..
            } => CollectiveError::Length {
                op,
                buffer,
                rank,
                expected,
                got,
            },
            MpiError::Poisoned { .. } => CollectiveError::Poisoned {
                op,
                rank,
                world_size,
            },
            other => CollectiveError::Transport {
                op,
                rank,
                world_size,
                reason: other.to_string(),
            },
        })
    }
}

/// Counts and offsets of MPI, one per rank.
#[derive(Default)]
struct Shares {
    counts: Vec<i32>,
    offsets: Vec<i32>,
}

/// Shares of `n` elements that differ by at most one.
fn even_shares(n: usize, world_size: usize) -> Vec<usize> {
    (0..world_size)
        .map(|rank| n / world_size + usize::from(rank < n % world_size))
        .collect()
}

impl collective::Collective for Collective {
    fn rank(&self) -> usize {
        self.comm.rank
    }

    fn world_size(&self) -> usize {
        self.comm.world_size
    }

    fn all_gather(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.named("all_gather", self.gather(send, counts, recv))
    }

    fn reduce_scatter(
        &self,
        send: &[f32],
        counts: &[usize],
        recv: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.named("reduce_scatter", self.sum_parts(send, counts, recv))
    }

    fn all_reduce(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.named("all_reduce", self.sum_all(data))
    }

    fn broadcast(&self, data: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        self.named("broadcast", self.copy_root(data, root))
    }
}

impl Drop for Collective {
    fn drop(&mut self) {
        if self.comm("drop").is_err() {
            // Finalising has freed the communicator, or will at the process' end; the world may not be
            // dropped on another thread.
            std::mem::forget(self.world.take());
            return;
        }
        let mut raw = self.comm.raw();
        // SAFETY: the communicator is freed once, here; MPI is live and this is its thread.
        unsafe { ffi::MPI_Comm_free(&raw mut raw) };
    }
}
