//! What the tests of topologies share.

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::mixing::MixingMatrix;
use crate::seed;

/// Connects nodes of unknown classes, always by the same seed.
pub(crate) fn connect(topology: &dyn Topology, n_nodes: usize) -> Result<Schedule, TopologyError> {
    let nodes = Nodes {
        n_nodes,
        classes: None,
    };
    topology.connect(&nodes, &mut seed::rng(7, 0))
}

/// All entries, row by row.
pub(crate) fn dense(mixing: &MixingMatrix) -> Vec<f64> {
    let n_nodes = mixing.n_nodes();
    let mut all = vec![0.0; n_nodes * n_nodes];
    for (row, col, weight) in mixing.entries() {
        all[row * n_nodes + col] = weight;
    }
    all
}

/// The product of a period's matrices, the first round rightmost: what a period does to the models.
pub(crate) fn product(schedule: &Schedule) -> Vec<f64> {
    let n_nodes = schedule.mixing(0).n_nodes();
    let mut all = vec![0.0; n_nodes * n_nodes];
    (0..n_nodes).for_each(|node| all[node * n_nodes + node] = 1.0);
    for mixing in &schedule.rounds {
        let mut next = vec![0.0; n_nodes * n_nodes];
        for (row, mid, weight) in mixing.entries() {
            for col in 0..n_nodes {
                next[row * n_nodes + col] += weight * all[mid * n_nodes + col];
            }
        }
        all = next;
    }
    all
}

/// The largest difference of an entry from 1/n.
pub(crate) fn distance_to_average(matrix: &[f64]) -> f64 {
    let average = 1.0 / (matrix.len() as f64).sqrt();
    let distances = matrix.iter().map(|entry| (entry - average).abs());
    distances.fold(0.0, f64::max)
}
