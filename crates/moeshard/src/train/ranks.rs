//! The processes that train together: this one alone, or those that `mpirun` has started.

use anyhow::{Context, Result};
use moeshard_decentralized::train::mpi::MpiTransport;
use moeshard_decentralized::train::transport::{InProcess, Transport};
use moeshard_mpi::{World, launcher};

use super::args::TrainConfig;

/// The processes that train together.
#[derive(Debug)]
pub enum Ranks {
    /// This one.
    Alone,
    /// Those of an MPI job.
    Job(World),
}

impl Ranks {
    /// Joins the job that this process was started in, if it was.
    ///
    /// # Errors
    /// If there is a job and this program was built without MPI.
    pub fn join() -> Result<Self> {
        if launcher::n_ranks_launched().is_none() {
            return Ok(Self::Alone);
        }
        let world = World::init().context("cannot join the job of mpirun")?;
        world.advise_when_ended("go on with --resume")?;
        Ok(Self::Job(world))
    }

    /// Ends the job if this rank has failed: the others would wait for it.
    ///
    /// # Errors
    /// That of a process that is alone.
    pub fn leave(self, result: Result<()>) -> Result<()> {
        match (&self, result) {
            (Self::Job(world), Err(error)) => {
                eprintln!("moeshard: rank {}: {error:#}", world.rank());
                world.abort(1)
            }
            (_, result) => result,
        }
    }

    /// Whether this is the rank that measures and writes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        match self {
            Self::Alone => true,
            Self::Job(world) => world.rank() == 0,
        }
    }

    /// Ranks share the cores of a machine, unless somebody said how many threads each has; as if all were
    /// on one machine, because that does no harm elsewhere but take longer.
    pub fn share_cores(&self, config: &mut TrainConfig) {
        if let (Self::Job(world), None) = (self, config.model.compute.threads) {
            let n_threads = &mut config.settings.n_threads;
            *n_threads = (*n_threads / world.world_size()).max(1);
            config.model.compute.threads = Some(*n_threads);
            // Ranks that bind their threads to the same cores wait for each other.
            config.model.compute.share_cores = true;
        }
    }

    /// How they reach one another.
    #[must_use]
    pub fn transport(&self) -> Box<dyn Transport + '_> {
        match self {
            Self::Alone => Box::new(InProcess),
            Self::Job(world) => Box::new(MpiTransport::new(world)),
        }
    }

    /// That all say the same number of `what`: their files might differ.
    ///
    /// # Errors
    /// If they do not.
    pub fn agree_on(&self, what: &'static str, number: u64) -> Result<()> {
        match self {
            Self::Alone => Ok(()),
            Self::Job(world) => Ok(world.agree(what, number)?),
        }
    }
}
