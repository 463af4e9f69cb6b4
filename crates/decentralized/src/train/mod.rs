//! Training on many nodes, each with data of its own, that average their models by a mixing matrix.
//!
//! In reading order: [`settings`] says what is trained how; [`transport`] is how the ranks of a run
//! reach one another, and [`mpi`] one way to do it; [`absence`] is who misses a round; `mixer` averages
//! models, and `cliques` gradients; `gradients` is what nodes compute; `methods` are the algorithms, one
//! function each, on a `state`; [`trainer`] runs rounds; [`evaluate`] measures how good the models are
//! and how far apart; [`checkpoint`] is a run on disk.

pub mod absence;
pub mod checkpoint;
mod cliques;
mod error;
pub mod evaluate;
mod gradients;
mod methods;
mod mixer;
pub mod mpi;
pub mod settings;
mod state;
pub mod trainer;
pub mod transport;

pub use error::{Result, TrainError};
pub use settings::{Method, MixOrder, Settings};
pub use trainer::{Task, Trainer};
