//! One world of the processes that a launcher has started.

use moeshard_engine::processes::JoinWorld;
use moeshard_mpi::{MpiError, World};
use moeshard_tensor::collective::CollectiveError;

use super::Launch;

impl Launch {
    /// Joins the others by MPI, and makes sure that all have the same `agreement`.
    #[must_use]
    pub fn join(&self, agreement: u64) -> JoinWorld {
        let (launcher, rank, world_size) = (self.launcher, self.rank, self.world_size);
        let failed = move |reason: String| CollectiveError::Transport {
            op: "joining the other processes",
            rank,
            world_size,
            reason,
        };
        let mpi = move |error: MpiError| failed(error.to_string());
        Box::new(move |word| {
            let world = World::init().map_err(mpi)?;
            let found = (world.rank(), world.world_size());
            if found != (rank, world_size) {
                let (rank, n) = found;
                return Err(failed(format!(
                    "MPI says that this is rank {rank} of {n}: {launcher} and MPI do not know of each other; \
                     srun needs --mpi=pmix, mpirun must be that of the MPI that moeshard was built with"
                )));
            }
            world
                .agree("the model and its flags (a number made of them)", agreement)
                .map_err(mpi)?;
            world.broadcast(word).map_err(mpi)?;
            Ok(Box::new(world.into_collective().map_err(mpi)?))
        })
    }
}
