//! One world of the processes that a launcher has started.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result};
use moeshard_engine::processes::{self, FollowError, JoinWorld, Joined, Met, Missing, Rendezvous};
use moeshard_mpi::{MpiError, World};
use moeshard_tensor::collective::CollectiveError;

use super::{Launch, Transport};

/// Told when a process is lost while others are being met or the model is opened.
pub type OnLost = Arc<dyn Fn(FollowError) + Send + Sync>;

/// The processes of a job, on their way to each other.
pub struct Joining {
    launch: Launch,
    way: Way,
    missing: Missing,
}

/// By what they meet.
enum Way {
    Mpi,
    Tcp(Receiver<Met>),
}

impl Launch {
    /// Begins to look for the other processes. Where they meet over TCP, this goes on beside whatever else there is
    /// to do, such as opening the model, and `on_lost` hears if it comes to nothing.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn begin(self, transport: Transport, on_lost: OnLost) -> Result<Joining> {
        let (way, missing) = match transport {
            Transport::Mpi => (Way::Mpi, Missing::default()),
            Transport::Tcp(place) => {
                let missing = Missing::before(&place);
                (Way::Tcp(meet(place, missing.clone(), on_lost)?), missing)
            }
        };
        Ok(Joining {
            launch: self,
            way,
            missing,
        })
    }
}

fn meet(place: Rendezvous, missing: Missing, on_lost: OnLost) -> Result<Receiver<Met>> {
    let (tell, met) = channel();
    let job = move || {
        let watching = Arc::clone(&on_lost);
        match processes::meet(&place, &missing, move |lost| watching(lost)) {
            // Nobody wants it if the model cannot be opened.
            Ok(met) => drop(tell.send(met)),
            Err(lost) => on_lost(lost),
        }
    };
    let named = thread::Builder::new().name("meeting".to_owned());
    named.spawn(job).context("cannot start a thread")?;
    Ok(met)
}

impl Joining {
    /// This process' rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Who has not come yet.
    #[must_use]
    pub fn missing(&self) -> Missing {
        self.missing.clone()
    }

    /// Joins the others, and makes sure that all have the same `agreement`.
    #[must_use]
    pub fn join(self, agreement: u64) -> JoinWorld {
        let launch = self.launch;
        match self.way {
            Way::Mpi => Box::new(move || launch.join_by_mpi(agreement)),
            Way::Tcp(met) => Box::new(move || match met.recv() {
                Ok(met) => met.join(agreement),
                Err(_) => Err(launch.failed("they were not met".to_owned())),
            }),
        }
    }
}

impl std::fmt::Debug for Joining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Joining").field(&self.launch).finish()
    }
}

impl Launch {
    fn failed(&self, reason: String) -> CollectiveError {
        CollectiveError::Transport {
            op: "joining the other processes",
            rank: self.rank,
            world_size: self.world_size,
            reason,
        }
    }

    fn join_by_mpi(&self, agreement: u64) -> Result<Joined, CollectiveError> {
        let (launcher, rank, world_size) = (self.launcher, self.rank, self.world_size);
        let mpi = |error: MpiError| self.failed(error.to_string());
        let world = World::init().map_err(mpi)?;
        let found = (world.rank(), world.world_size());
        if found != (rank, world_size) {
            let (rank, n) = found;
            return Err(self.failed(format!(
                "MPI says that this is rank {rank} of {n}: {launcher} and MPI do not know of each other; \
                 srun needs --mpi=pmix, mpirun must be that of the MPI that moeshard was built with"
            )));
        }
        world
            .agree("the model and its flags (a number made of them)", agreement)
            .map_err(mpi)?;
        let links = processes::links(found, &self.hosts, |word| {
            world.broadcast(word).map_err(mpi)
        })?;
        Ok(Joined {
            collective: Box::new(world.into_collective().map_err(mpi)?),
            links,
        })
    }
}
