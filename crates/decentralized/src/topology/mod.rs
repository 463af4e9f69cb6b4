//! Who exchanges with whom.
//!
//! A [`Topology`] is a rule; for given nodes it makes a [`Schedule`]: the mixing matrix of every
//! round.

use std::fmt::Debug;

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::seed::Rng;

mod error;
pub mod stl_fw;

pub use error::TopologyError;

/// What a topology is made for.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// How many there are.
    pub n_nodes: usize,
    /// What they hold; topologies that mind the data need it.
    pub classes: Option<&'a ClassCounts>,
}

/// A rule by which nodes are connected.
pub trait Topology: Debug + Send + Sync {
    /// Its name on the command line, with its parameters.
    fn name(&self) -> String;

    /// Connects `nodes`; random choices are drawn from `rng`.
    ///
    /// # Errors
    /// If the rule does not fit the nodes (a parameter out of range, classes that it needs and does
    /// not get).
    fn connect(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Schedule, TopologyError>;
}

/// Nodes all connected to one another, in ascending order.
pub type Clique = Vec<u32>;

/// The mixing matrices of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Of round `t`: `rounds[t % rounds.len()]`. Never empty.
    pub rounds: Vec<MixingMatrix>,
    /// The cliques that the nodes are divided into; none for most topologies.
    pub cliques: Vec<Clique>,
}

impl Schedule {
    /// The same matrix in every round.
    #[must_use]
    pub fn fixed(mixing: MixingMatrix) -> Self {
        Self {
            rounds: vec![mixing],
            cliques: Vec::new(),
        }
    }

    /// The mixing matrix of a round.
    #[must_use]
    pub fn mixing(&self, round: usize) -> &MixingMatrix {
        &self.rounds[round % self.rounds.len()]
    }
}
