//! Who exchanges with whom.
//!
//! A [`Topology`] is a rule; for given nodes it makes a [`Schedule`]: the mixing matrix of every
//! round.

use std::fmt::Debug;

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::seed::Rng;

pub mod d_cliques;
pub mod file;
pub mod stl_fw;

mod base;
mod complete;
mod erdos_renyi;
mod error;
mod exponential;
mod from_file;
mod grid;
mod parse;
mod random_regular;
mod ring;
mod small_world;
#[cfg(test)]
pub(crate) mod testing;

pub use base::BaseGraph;
pub use complete::Complete;
pub use d_cliques::{DCliques, InterClique};
pub use erdos_renyi::ErdosRenyi;
pub use error::TopologyError;
pub use exponential::{Exponential, OnePeerExponential};
pub use from_file::FromFile;
pub use grid::{Grid, Torus};
pub use parse::{Parameter, Rule, known, parse};
pub use random_regular::RandomRegular;
pub use ring::Ring;
pub use small_world::{SmallWorld, WattsStrogatz};
pub use stl_fw::StlFw;

/// The most weights that a mixing matrix may hold: a complete graph of 8191 nodes. They take 12 bytes
/// each, and 16 more while they are collected, 1.9 GB in all.
const MAX_LINKS: u64 = 1 << 26;

/// What a topology is made for.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// How many there are.
    pub n_nodes: usize,
    /// What they hold; topologies that mind the data need it.
    pub classes: Option<&'a ClassCounts>,
}

impl Nodes<'_> {
    /// That there are nodes, that the classes are theirs, and that a matrix with about `degree`
    /// neighbours a node fits the memory: what each rule needs before it starts.
    fn check(&self, topology: &'static str, degree: usize) -> Result<(), TopologyError> {
        let n_nodes = self.n_nodes;
        if n_nodes == 0 || u32::try_from(n_nodes).is_err() {
            return Err(TopologyError::Nodes { topology, n_nodes });
        }
        let n_rows = self.classes.map_or(n_nodes, ClassCounts::n_nodes);
        if n_rows != n_nodes {
            return Err(TopologyError::Classes {
                topology,
                n_nodes,
                n_rows,
            });
        }
        let n_links = (n_nodes as u64).saturating_mul((degree as u64).saturating_add(1));
        if n_links > MAX_LINKS {
            return Err(TopologyError::Large {
                topology,
                n_nodes,
                n_links,
            });
        }
        Ok(())
    }
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
