//! Edges, degrees and components of a schedule.

use crate::digraph::Digraph;
use crate::topology::Schedule;

/// Who exchanges with whom over a period, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// Pairs of nodes of which one sends to the other in some round, or both do.
    pub n_edges: usize,
    /// Ordered pairs (sender, receiver) that exchange in some round: twice the edges if all are
    /// undirected.
    pub n_links: usize,
    /// The most nodes that one sends to in a round.
    pub max_out_degree: usize,
    /// The most nodes that one receives from in a round.
    pub max_in_degree: usize,
    /// Nodes that one sends to in a round, in the mean over nodes and rounds.
    pub mean_degree: f64,
    /// Components of the nodes that exchange in some round, directions apart. More than one never
    /// come to agree.
    pub n_components: usize,
    /// Components within which every node reaches every other. As many, since every node is given
    /// as much weight as it gives.
    pub n_strong_components: usize,
}

impl Links {
    /// Of the rounds of a schedule.
    #[must_use]
    pub fn of(schedule: &Schedule) -> Self {
        let links = Digraph::of(&schedule.rounds);
        let undirected = links.undirected();
        let (mut max_out_degree, mut max_in_degree, mut n_sent) = (0, 0, 0);
        for mixing in &schedule.rounds {
            let mut degrees = vec![[0; 2]; mixing.n_nodes()];
            for (row, col, _) in mixing.entries().filter(|(row, col, _)| row != col) {
                degrees[col][0] += 1;
                degrees[row][1] += 1;
                n_sent += 1;
            }
            for [n_out, n_in] in degrees {
                max_out_degree = max_out_degree.max(n_out);
                max_in_degree = max_in_degree.max(n_in);
            }
        }
        let n_turns = (links.n_nodes() * schedule.rounds.len()).max(1);
        Self {
            n_edges: undirected.n_edges(),
            n_links: links.n_links(),
            max_out_degree,
            max_in_degree,
            mean_degree: n_sent as f64 / n_turns as f64,
            n_components: undirected.components().len(),
            n_strong_components: links.strong_components().len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::connect;
    use crate::topology::{Exponential, Grid, OnePeerExponential, RandomRegular, TopologyError};

    #[test]
    fn edges_are_pairs_and_degrees_those_of_a_round() -> Result<(), TopologyError> {
        let grid = Links::of(&connect(&Grid, 12)?);
        let expect = Links {
            n_edges: 17,
            n_links: 34,
            max_out_degree: 4,
            max_in_degree: 4,
            mean_degree: 34.0 / 12.0,
            n_components: 1,
            n_strong_components: 1,
        };
        assert_eq!(grid, expect);
        // Offsets 1, 2 and 4 of eight nodes: across, both directions are one edge.
        let all = Links::of(&connect(&Exponential, 8)?);
        assert_eq!((all.n_links, all.n_edges, all.max_in_degree), (24, 20, 3));
        let one_peer = Links::of(&connect(&OnePeerExponential, 8)?);
        assert_eq!((one_peer.n_links, one_peer.n_edges), (24, 20));
        assert_eq!((one_peer.max_out_degree, one_peer.mean_degree), (1, 1.0));
        let pairs = Links::of(&connect(&RandomRegular { degree: 1 }, 16)?);
        assert_eq!((pairs.n_components, pairs.n_strong_components), (8, 8));
        Ok(())
    }
}
