//! All ranks of a job.

use std::rc::Rc;

use mpi::Threading;
use mpi::environment::{self, Universe};
use mpi::ffi;

use super::collective::Collective;
use super::comm::{Comm, datatype, start, start_mut};
use super::exchange::Exchange;
use super::row_type::RowType;
use super::{collective, ended};
use crate::element::{Element, Number};
use crate::error::MpiError;
use crate::links::Links;

/// Bytes that one call of a broadcast moves: MPI counts in 32 bits.
const MAX_PIECE: usize = 1 << 30;

/// The ranks of a job. Every rank makes the same calls in the same order; each call but
/// [`World::rank`] and its like waits for the others.
///
/// It stays on the thread that made it (MPI's level `FUNNELED`); other threads may compute. MPI is
/// finalised when it and every [`Exchange`] of it are dropped.
#[derive(Debug)]
pub struct World {
    comm: Comm,
    processor: String,
    job: Rc<Job>,
}

/// Finalises MPI when the last that needs it is dropped. Not `Send`: that must happen on the thread
/// that initialised MPI.
pub(super) struct Job {
    /// `None` after the drop.
    universe: Option<Universe>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others may be waiting for this rank, and finalising would wait for them.
            // SAFETY: MPI is initialised, and this is the thread that did it.
            unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, PANICKED) };
        }
        collective::finalised();
        self.universe = None;
    }
}

/// The job's exit code after a panic, as Rust's own.
const PANICKED: i32 = 101;

impl World {
    /// Joins the job that the launcher has started; without a launcher, one of a single rank.
    ///
    /// # Communication
    /// Waits for every rank of the job.
    ///
    /// # Errors
    /// [`MpiError::Initialised`] if this was called before in this process; [`MpiError::Threading`].
    /// What fails earlier, MPI reports itself before it ends the process.
    pub fn init() -> Result<Self, MpiError> {
        let initialised = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, got) = initialised.ok_or(MpiError::Initialised)?;
        let universe = Some(universe);
        let job = Rc::new(Job { universe });
        if got < Threading::Funneled {
            let got = format!("{got:?}");
            return Err(MpiError::Threading { got });
        }
        // SAFETY: MPI was just initialised, and `job` keeps it so.
        let comm = unsafe { Comm::new(ffi::RSMPI_COMM_WORLD) }?;
        let processor = environment::processor_name().unwrap_or_else(|_| "unnamed".to_owned());
        Ok(Self {
            comm,
            processor,
            job,
        })
    }

    /// This rank, below [`World::world_size`].
    pub fn rank(&self) -> usize {
        self.comm.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.comm.world_size
    }

    /// What MPI calls the machine that this rank runs on.
    pub fn processor(&self) -> &str {
        &self.processor
    }

    /// Waits until every rank has called this.
    pub fn barrier(&self) -> Result<(), MpiError> {
        // SAFETY: the communicator is live.
        self.comm
            .call("MPI_Barrier", |comm| unsafe { ffi::MPI_Barrier(comm) })
    }

    /// Replaces the bytes, also their number, by those of rank 0.
    pub fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), MpiError> {
        let mut len = [bytes.len() as u64];
        self.broadcast_slice(&mut len)?;
        let op = "MPI_Bcast";
        let got = usize::try_from(len[0]).unwrap_or(usize::MAX);
        if got > isize::MAX.unsigned_abs() {
            let (rank, what) = (self.comm.rank, "bytes");
            return Err(MpiError::TooMany {
                op,
                rank,
                what,
                got,
            });
        }
        bytes.resize(got, 0);
        bytes
            .chunks_mut(MAX_PIECE)
            .try_for_each(|piece| self.broadcast_slice(piece))
    }

    /// Replaces the elements by those of rank 0. Every rank must have as many.
    fn broadcast_slice<T: Element>(&self, data: &mut [T]) -> Result<(), MpiError> {
        let op = "MPI_Bcast";
        let count = self.comm.count(op, "elements", data.len())?;
        // SAFETY: the buffer holds `count` elements of the kind named.
        self.comm.call(op, |comm| unsafe {
            ffi::MPI_Bcast(start_mut(data), count, datatype(T::KIND), 0, comm)
        })
    }

    /// Concatenates all ranks' rows at rank 0, in rank order.
    ///
    /// # Shapes
    /// - `local`: `[n_local, row_len]`; `n_local` may differ between ranks and be 0, `row_len` may not
    /// - returns `[Σ n_local, row_len]` on rank 0, and `None` on the others
    ///
    /// # Errors
    /// Those of a caller come to every rank: [`MpiError::Rows`] where it happened and
    /// [`MpiError::Elsewhere`] on the others, or [`MpiError::Disagree`] on the length of a row.
    pub fn gather_rows<T: Element>(
        &self,
        local: &[T],
        row_len: usize,
    ) -> Result<Option<Vec<T>>, MpiError> {
        let op = "gather_rows";
        let n_local = self.all_ok(op, self.n_rows(op, local.len(), row_len))?;
        self.agree("the length of a row", row_len as u64)?;
        let counts = self.gather_counts(n_local)?;
        let n_rows = counts.iter().map(|count| count.unsigned_abs() as usize);
        let (mut offsets, mut n_total) = (Vec::with_capacity(counts.len()), 0);
        for n in n_rows {
            offsets.push(self.comm.count(op, "rows", n_total)?);
            n_total += n;
        }
        let mut all = vec![T::default(); n_total * row_len];
        let row = RowType::new(&self.comm, T::KIND, row_len)?;
        let n_local = self.comm.count(op, "rows", n_local)?;
        // SAFETY: `local` holds `n_local` rows, which `n_rows` has checked. At rank 0, counts and
        // offsets are one per rank, and `all` holds the sum of the counts; elsewhere MPI reads
        // neither of them nor writes to `all`.
        self.comm.call("MPI_Gatherv", |comm| unsafe {
            ffi::MPI_Gatherv(
                start(local),
                n_local,
                row.raw(),
                start_mut(&mut all),
                counts.as_ptr(),
                offsets.as_ptr(),
                row.raw(),
                0,
                comm,
            )
        })?;
        Ok((self.rank() == 0).then_some(all))
    }

    /// Every rank's count at rank 0; nothing elsewhere.
    fn gather_counts(&self, n: usize) -> Result<Vec<i32>, MpiError> {
        let is_root = self.rank() == 0;
        let mut all = vec![0u64; if is_root { self.world_size() } else { 0 }];
        let here = n as u64;
        // SAFETY: one element is sent by each rank, and rank 0 has room for as many; MPI does not
        // look at the other ranks' empty buffer.
        self.comm.call("MPI_Gather", |comm| unsafe {
            let kind = datatype(<u64 as crate::element::Sealed>::KIND);
            let (send, recv) = ((&raw const here).cast(), start_mut(&mut all));
            ffi::MPI_Gather(send, 1, kind, recv, 1, kind, 0, comm)
        })?;
        let counts = all.into_iter().map(|n| {
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            self.comm.count("gather_rows", "rows", n)
        });
        counts.collect()
    }

    fn n_rows(
        &self,
        op: &'static str,
        n_elements: usize,
        row_len: usize,
    ) -> Result<usize, MpiError> {
        let rank = self.rank();
        match (n_elements, row_len) {
            (0, 0) => Ok(0),
            (n, len) if len > 0 && n % len == 0 => {
                self.comm.count(op, "rows", n / len)?;
                Ok(n / len)
            }
            _ => Err(MpiError::Rows {
                op,
                rank,
                n_elements,
                row_len,
            }),
        }
    }

    /// Replaces each value by the smallest of all ranks'. Every rank must have as many values.
    pub fn all_min<T: Number>(&self, values: &mut [T]) -> Result<(), MpiError> {
        self.comm.all_min(values)
    }

    /// Replaces each value by the largest of all ranks'. Every rank must have as many values.
    pub fn all_max<T: Number>(&self, values: &mut [T]) -> Result<(), MpiError> {
        self.comm.all_max(values)
    }

    /// Makes sure that all ranks have the same value, such as a hash of the configuration or the epoch
    /// of a checkpoint.
    ///
    /// # Errors
    /// [`MpiError::Disagree`] on every rank.
    pub fn agree(&self, what: &'static str, value: u64) -> Result<(), MpiError> {
        self.comm.agree(what, value)
    }

    /// Makes one rank's failure everybody's, so that nobody goes on to wait for it.
    ///
    /// # Errors
    /// This rank's own; else [`MpiError::Elsewhere`] if another rank has one.
    pub fn all_ok<T, E: From<MpiError>>(
        &self,
        op: &'static str,
        result: Result<T, E>,
    ) -> Result<T, E> {
        let here = u64::from(result.is_err());
        let mut failed = vec![0u64; self.world_size()];
        failed[self.rank()] = here;
        let shared = self.all_max(&mut failed);
        let value = result?;
        shared?;
        let n_failed = failed.iter().sum();
        if n_failed == 0 {
            return Ok(value);
        }
        let (rank, world_size) = (self.rank(), self.world_size());
        Err(E::from(MpiError::Elsewhere {
            op,
            rank,
            n_failed,
            world_size,
        }))
    }

    /// Makes a communicator of a graph; see [`Links`]. A job may have several.
    ///
    /// # Errors
    /// On every rank if the links of any are wrong by themselves or do not fit the others'.
    pub fn exchange(&self, links: &Links) -> Result<Exchange, MpiError> {
        Exchange::new(self, links)
    }

    /// Makes a collective whose sums have the bits of the in-process one.
    pub fn collective(&self) -> Result<Collective, MpiError> {
        Collective::new(&self.comm)
    }

    /// The same, for who needs nothing else of the job: MPI is finalised when it is dropped.
    pub fn into_collective(self) -> Result<Collective, MpiError> {
        Ok(self.collective()?.keep(self))
    }

    /// From now on, a rank that is ended by the launcher (see the crate's documentation) first prints
    /// a sentence with this advice, for example "continue with `--resume`", to standard error.
    ///
    /// Takes the place of any other handler of SIGTERM.
    ///
    /// # Errors
    /// [`MpiError::Signal`].
    pub fn advise_when_ended(&self, advice: &str) -> Result<(), MpiError> {
        ended::advise(self.rank(), self.world_size(), advice)
    }

    /// Ends the whole job at once with an exit code. The caller has said why.
    pub fn abort(&self, code: i32) -> ! {
        // SAFETY: MPI is initialised. The call does not return; should it, the process exits, which
        // the launcher answers by ending the others.
        unsafe { ffi::MPI_Abort(self.comm.raw(), code) };
        std::process::exit(code)
    }

    pub(super) fn comm(&self) -> &Comm {
        &self.comm
    }

    pub(super) fn job(&self) -> Rc<Job> {
        Rc::clone(&self.job)
    }
}
