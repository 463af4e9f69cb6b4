//! A graph communicator and one round on it.

use std::rc::Rc;

use mpi::ffi;

use super::comm::{Comm, datatype, start, start_mut};
use super::row_type::RowType;
use super::world::{Job, World};
use crate::element::{Kind, Sealed};
use crate::error::MpiError;
use crate::links::Links;
use crate::plan::Plan;

/// Who sends which rows to whom, as a communicator of MPI. One [`Exchange::run`] is one round.
#[derive(Debug)]
pub struct Exchange {
    /// Shares no messages with other communicators.
    comm: Comm,
    plan: Plan,
    /// The row of the last round: it changes with the length of a row only.
    row: Option<RowType>,
    /// Rows on their way, `[n_sent, row_len]`; kept for the next round.
    packed: Vec<f32>,
    /// Dropped last: the communicator and the type must be freed before MPI is finalised.
    _job: Rc<Job>,
}

impl Exchange {
    pub(super) fn new(world: &World, links: &Links) -> Result<Self, MpiError> {
        let op = "exchange";
        let (rank, world_size) = (world.rank(), world.world_size());
        let plan = world.all_ok(op, Plan::new(rank, world_size, links))?;
        let received = all_to_all(world.comm(), &plan.sent(world_size))?;
        world.all_ok(op, plan.check_received(rank, &received))?;
        Ok(Self {
            comm: graph(world.comm(), &plan)?,
            plan,
            row: None,
            packed: Vec::new(),
            _job: world.job(),
        })
    }

    /// Rows that arrive in a round.
    pub fn n_halo(&self) -> usize {
        self.plan.n_halo
    }

    /// Rows that leave in a round; one that goes to several ranks counts several times.
    pub fn n_sent(&self) -> usize {
        self.plan.packed.len()
    }

    /// Sends the rows that the links name, and receives those of the neighbours.
    ///
    /// # Shapes
    /// - `local`: `[n_local, row_len]`; `row_len` is the same on every rank
    /// - `halo`: `[n_halo, row_len]`, by sender's rank, then in the order of the sender's links
    ///
    /// # Communication
    /// One `MPI_Neighbor_alltoallv`; every rank must call it, also one without links. A round with
    /// another `row_len` than the last one's first makes sure that the ranks agree on it.
    ///
    /// # Errors
    /// [`MpiError::Length`] before anything was sent: the other ranks are then waiting.
    /// [`MpiError::Disagree`] on every rank. [`MpiError::Call`] if MPI fails.
    pub fn run(&mut self, local: &[f32], row_len: usize, halo: &mut [f32]) -> Result<(), MpiError> {
        let op = "exchange";
        let (n_local, n_halo) = (self.plan.n_local, self.plan.n_halo);
        let (comm, plan) = (&self.comm, &self.plan);
        comm.check_length(op, "local", n_local.saturating_mul(row_len), local.len())?;
        comm.check_length(op, "halo", n_halo.saturating_mul(row_len), halo.len())?;
        let row = row_of(&mut self.row, comm, row_len)?.raw();
        pack(&mut self.packed, local, row_len, &plan.packed);
        let (sent, received) = (&plan.send, &plan.receive);
        // SAFETY: counts and offsets are one per neighbour in the order in which the communicator
        // was made. `packed` holds as many rows as are sent, and the length of `halo` was checked
        // against the rows that arrive; the two do not overlap.
        comm.call("MPI_Neighbor_alltoallv", |comm| unsafe {
            ffi::MPI_Neighbor_alltoallv(
                start(&self.packed),
                sent.counts.as_ptr(),
                sent.offsets.as_ptr(),
                row,
                start_mut(halo),
                received.counts.as_ptr(),
                received.offsets.as_ptr(),
                row,
                comm,
            )
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut raw = self.comm.raw();
        // SAFETY: the communicator is freed once, here, and MPI is not finalised before `_job` goes.
        // Nobody could be told of a failure.
        unsafe { ffi::MPI_Comm_free(&raw mut raw) };
    }
}

/// The row type of this length; made, if it was another, once the ranks agree on it.
fn row_of<'a>(
    row: &'a mut Option<RowType>,
    comm: &Comm,
    row_len: usize,
) -> Result<&'a RowType, MpiError> {
    let kept = row.take().filter(|row| row.row_len == row_len);
    let kept = match kept {
        Some(kept) => kept,
        None => {
            comm.agree("the length of a row", row_len as u64)?;
            RowType::new(comm, Kind::F32, row_len)?
        }
    };
    Ok(row.insert(kept))
}

/// `packed[i] = local[rows[i]]`
fn pack(packed: &mut Vec<f32>, local: &[f32], row_len: usize, rows: &[usize]) {
    packed.clear();
    packed.reserve(rows.len() * row_len);
    for row in rows {
        packed.extend_from_slice(&local[row * row_len..][..row_len]);
    }
}

/// Sends one number to each rank; returns those that the others sent here.
fn all_to_all(comm: &Comm, sent: &[u64]) -> Result<Vec<u64>, MpiError> {
    let mut received = vec![0u64; sent.len()];
    // SAFETY: both buffers hold one number per rank: a plan's counts are `[world_size]`.
    comm.call("MPI_Alltoall", |raw| unsafe {
        let kind = datatype(u64::KIND);
        let (send, recv) = (start(sent), start_mut(&mut received));
        ffi::MPI_Alltoall(send, 1, kind, recv, 1, kind, raw)
    })?;
    Ok(received)
}

/// The communicator of a plan's graph. Edges weigh as many rows as they carry: MPI asks for weights, and
/// the constant for "none" does not reach Rust.
fn graph(world: &Comm, plan: &Plan) -> Result<Comm, MpiError> {
    let op = "MPI_Dist_graph_create_adjacent";
    let (receive, send) = (&plan.receive, &plan.send);
    let in_degree = world.count(op, "neighbours", receive.ranks.len())?;
    let out_degree = world.count(op, "neighbours", send.ranks.len())?;
    // SAFETY: a null handle is a valid value, overwritten by the next call.
    let mut raw = unsafe { ffi::RSMPI_COMM_NULL };
    // SAFETY: ranks and weights are as many as the degrees say. Ranks must not be reordered: the
    // caller's data is where the ranks of the world are.
    world.call(op, |world| unsafe {
        ffi::MPI_Dist_graph_create_adjacent(
            world,
            in_degree,
            receive.ranks.as_ptr(),
            receive.counts.as_ptr(),
            out_degree,
            send.ranks.as_ptr(),
            send.counts.as_ptr(),
            ffi::RSMPI_INFO_NULL,
            0,
            &raw mut raw,
        )
    })?;
    // SAFETY: the communicator was just made; `Exchange` frees it when it is dropped.
    unsafe { Comm::new(raw) }
}
