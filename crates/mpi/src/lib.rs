//! Processes of an MPI job that exchange rows of f32 along a graph: the transport of decentralized
//! training. The graph *is* the communicator: MPI is told who sends to whom, and one neighbourhood
//! collective is one round.
//!
//! In reading order:
//! - [`links`]: what one rank exchanges with which others.
//! - [`placement`]: many logical nodes a rank, and the links that a graph over nodes comes to.
//! - [`launcher`]: whether the process was started as a rank of a job.
//! - [`World`], [`Exchange`] and [`Collective`]: the job, a graph communicator, sums in rank order.
//! - [`error`]: what can go wrong.
//!
//! # Built without MPI
//! The crate's feature `mpi` is off by default, so that a machine without MPI builds everything.
//! Without it [`World::init`] returns [`MpiError::NotBuilt`], and as no [`World`] can then exist, code
//! that uses one compiles unchanged.
//!
//! # When a rank is lost
//! MPI cannot go on without one of its ranks, so a job is checkpointed and started again. Seen with
//! Open MPI 4.1.4 while four ranks were exchanging on one machine:
//!
//! | what happened to rank 1 | the others | `mpirun` |
//! |---|---|---|
//! | killed by signal S | SIGTERM, and SIGKILL a second later | names the rank and the signal, exits with 128 + S |
//! | exits with code C without an `abort` | the same | names the rank and the code, exits with C, or with 1 where C is 0 |
//! | [`World::abort`] with code C, or a panic | the same | says so, exits with C |
//!
//! No call returns an error in the ranks that are left: they hang in the collective until SIGTERM.
//! [`World::advise_when_ended`] therefore has each of them print a sentence when that signal comes.
//! Ctrl-C at `mpirun` sends the same signal; a `mpirun` that is itself killed takes the ranks with it
//! within half a second, silently. A rank that is killed at the start may have `mpirun` hang after
//! all others have ended: it waits in `pmix_rte_finalize` for a lock.
//!
//! A rank that returns early with an error and drops its [`World`] would wait in `MPI_Finalize` for
//! the others, which wait for it: the program must end with [`World::abort`], or share the error first
//! with [`World::all_ok`]. Where one of its threads hangs in a call for good, another one ends the process with
//! [`end_process`].

pub mod error;
pub mod launcher;
pub mod links;
pub mod placement;

mod element;
mod end;
// Needs no MPI itself, so its tests run everywhere.
#[cfg(any(feature = "mpi", test))]
mod plan;

#[cfg(feature = "mpi")]
mod job;
#[cfg(feature = "mpi")]
pub use job::{Collective, Exchange, World};

#[cfg(not(feature = "mpi"))]
mod absent;
#[cfg(not(feature = "mpi"))]
pub use absent::{Collective, Exchange, World};

/// Whether the feature `mpi` was on.
pub const IS_BUILT: bool = cfg!(feature = "mpi");

pub use element::{Element, Number};
pub use end::end_process;
pub use error::MpiError;
pub use links::Links;
pub use placement::Placement;
