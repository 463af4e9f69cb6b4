//! Clique Averaging: gradients averaged over each clique before the step.
//!
//! # Source
//! arXiv:2104.07365, algorithm 3.

use super::mixer::{Mixer, Weights};
use super::transport::Transport;
use super::{Result, TrainError};
use crate::topology::Schedule;

/// Averages gradients over cliques.
pub(super) struct CliqueMixer {
    pub(super) mixer: Mixer,
    /// The one matrix of it.
    pub(super) weights: Vec<Weights>,
}

impl CliqueMixer {
    pub(super) fn new(
        schedule: &Schedule,
        n_params: usize,
        transport: &mut dyn Transport,
    ) -> Result<Self> {
        let weights = vec![clique_weights(schedule)?];
        let mixer = Mixer::new(&weights, n_params, transport)?;
        Ok(Self { mixer, weights })
    }
}

/// Each node's mean over itself and those of its clique to whom it has an edge.
fn clique_weights(schedule: &Schedule) -> Result<Weights> {
    weights(schedule).map_err(|got| TrainError::Setting {
        setting: "clique averaging",
        expected: "a topology in which every node is in one clique, such as d-cliques",
        got: format!("asked for on one with {got}"),
    })
}

/// That gradients can be averaged over the cliques of a topology.
///
/// # Errors
/// [`TrainError::Unsuitable`] if a node is in none, or in two.
pub(super) fn check(topology: &str, schedule: &Schedule) -> Result<()> {
    let checked = weights(schedule).map_err(|got| TrainError::Unsuitable {
        method: "clique averaging",
        needed: "every node in one clique",
        topology: topology.to_owned(),
        got,
    });
    checked.map(drop)
}

/// The weights, or what is wrong with the cliques.
fn weights(schedule: &Schedule) -> std::result::Result<Weights, String> {
    if schedule.cliques.is_empty() {
        return Err("no cliques".to_owned());
    }
    let mixing = schedule.mixing(0);
    let mut weights: Weights = vec![Vec::new(); mixing.n_nodes()];
    for clique in &schedule.cliques {
        for &node in clique {
            let (neighbors, _) = mixing.row(node as usize);
            let is_mate = |mate: &&u32| **mate == node || neighbors.contains(mate);
            let mut mates: Vec<u32> = clique.iter().filter(is_mate).copied().collect();
            mates.sort_unstable();
            let share = 1.0 / mates.len() as f64;
            let row = mates.into_iter().map(|mate| (mate, share)).collect();
            let before = std::mem::replace(&mut weights[node as usize], row);
            if !before.is_empty() {
                return Err(format!("node {node} in two"));
            }
        }
    }
    match weights.iter().position(Vec::is_empty) {
        Some(node) => Err(format!("node {node} in none")),
        None => Ok(weights),
    }
}
