//! Why a training run could not start or go on.

use moeshard_tensor::linalg::LinalgError;

use crate::mixing::MixingError;

/// Why a training run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is out of range.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// Two parts of the run disagree.
    #[error("{what}: {one} in {one_of}, {other} in {other_of}")]
    Mismatch {
        /// What they disagree on.
        what: &'static str,
        /// What the one says.
        one: usize,
        /// Which that is.
        one_of: &'static str,
        /// What the other says.
        other: usize,
        /// Which that is.
        other_of: &'static str,
    },
    /// A node has nothing to learn from.
    #[error("node {node} has no examples")]
    EmptyNode {
        /// Which node.
        node: usize,
    },
    /// No path leads from some nodes to others, so they can never agree.
    #[error(
        "{topology} falls into {n_components} components, from some of which no path leads to others \
         (train on it all the same with --allow-disconnected)"
    )]
    Disconnected {
        /// The topology.
        topology: String,
        /// Number of components.
        n_components: usize,
    },
    /// The method does not converge with this mixing matrix.
    #[error("{method} needs {needed}, and {topology} has {got}")]
    Unsuitable {
        /// Which method.
        method: &'static str,
        /// What it needs.
        needed: &'static str,
        /// The topology.
        topology: String,
        /// What that has.
        got: String,
    },
    /// Parameters became NaN or infinite.
    #[error(
        "training diverged: the loss is {loss} in round {round} (try a smaller --learning-rate)"
    )]
    Diverged {
        /// The round.
        round: u64,
        /// The mean loss of its batches.
        loss: f32,
    },
    /// A matrix of a round is not doubly stochastic.
    #[error(transparent)]
    Mixing(#[from] MixingError),
    /// A checkpoint could not be written or read.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The other ranks could not be reached.
    #[error("rank {rank} of {world_size}: {reason}")]
    Transport {
        /// This rank.
        rank: usize,
        /// Ranks in all.
        world_size: usize,
        /// What went wrong.
        reason: String,
    },
    /// Threads could not be started, or matrices do not fit one another.
    #[error(transparent)]
    Linalg(#[from] LinalgError),
}

/// Result of training.
pub type Result<T> = std::result::Result<T, TrainError>;
