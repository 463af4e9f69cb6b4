//! Mostly near neighbours and a few far ones: paths are short at a small number of edges.

use rand::RngExt;

use super::exponential::powers_of_two;
use super::{Nodes, Schedule, Topology, TopologyError};
use crate::graph::{Graph, metropolis_hastings};
use crate::seed::Rng;

/// A ring on which node `i` is connected to `i ± (2ˢ + t)` for `s = 0 .. ⌈log₂ n⌉ − 1` and
/// `t = 0 .. k − 1`: the rule by which D-Cliques connect their cliques, here between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallWorld {
    /// How many nodes at each distance, at least 1.
    pub k: usize,
}

/// A ring on which each node is connected to the `degree` nearest, and then each edge is, with
/// probability `p`, given another end at random. May be disconnected.
///
/// # Source
/// Watts, Strogatz: Collective dynamics of 'small-world' networks, 1998.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WattsStrogatz {
    /// Neighbours of a node before edges are moved: even, less than n.
    pub degree: usize,
    /// Probability that an edge is moved, 0 to 1.
    pub p: f64,
}

impl Topology for SmallWorld {
    fn name(&self) -> String {
        format!("small-world:k={}", self.k)
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        let n_nodes = nodes.n_nodes;
        if self.k == 0 {
            let expected = "at least 1".to_owned();
            return Err(parameter("small-world", "k", expected, "0".to_owned()));
        }
        // More than n at each distance only repeat the same edges.
        let k = self.k.min(n_nodes);
        let degree = powers_of_two(n_nodes)
            .count()
            .saturating_mul(2 * k)
            .min(n_nodes);
        nodes.check("small-world", degree)?;
        let all = powers_of_two(n_nodes).flat_map(|offset| offset..offset + k);
        let graph = Graph::circulant(n_nodes, all);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

impl Topology for WattsStrogatz {
    fn name(&self) -> String {
        format!("watts-strogatz:d={},p={}", self.degree, self.p)
    }

    fn connect(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("watts-strogatz", self.degree.min(nodes.n_nodes))?;
        let n_nodes = nodes.n_nodes;
        if !self.degree.is_multiple_of(2) || self.degree == 0 || self.degree >= n_nodes {
            let expected = format!("even, at least 2 and less than the {n_nodes} nodes");
            let got = self.degree.to_string();
            return Err(parameter("watts-strogatz", "d", expected, got));
        }
        if !(0.0..=1.0).contains(&self.p) {
            let expected = "a probability from 0 to 1".to_owned();
            let got = self.p.to_string();
            return Err(parameter("watts-strogatz", "p", expected, got));
        }
        let graph = watts_strogatz(n_nodes, self.degree, self.p, rng);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

fn parameter(
    topology: &'static str,
    parameter: &'static str,
    expected: String,
    got: String,
) -> TopologyError {
    TopologyError::Parameter {
        topology,
        parameter,
        expected,
        got,
    }
}

/// As in the paper, nearest edges of all nodes come first, and an edge keeps its first end. An edge
/// whose first end is connected to everybody stays.
fn watts_strogatz(n_nodes: usize, degree: usize, p: f64, rng: &mut Rng) -> Graph {
    let mut graph = Graph::circulant(n_nodes, 1..=degree / 2);
    for offset in 1..=degree / 2 {
        for node in 0..n_nodes {
            if rng.random_bool(p) && graph.degree(node) + 1 < n_nodes {
                let end = std::iter::repeat_with(|| rng.random_range(0..n_nodes))
                    .find(|&end| end != node && !graph.has_edge(node, end));
                graph.disconnect(node, (node + offset) % n_nodes);
                graph.connect(node, end.unwrap_or(node));
            }
        }
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use crate::topology::testing::connect;

    #[test]
    fn distances_double() -> Result<(), TopologyError> {
        let schedule = connect(&SmallWorld { k: 1 }, 17)?;
        // ± 1, 2, 4, 8, 16; 16 is the same as −1.
        let senders = [0, 1, 2, 4, 8, 9, 13, 15, 16];
        assert_eq!(schedule.mixing(0).row(0).0, senders);
        let schedule = connect(&SmallWorld { k: 2 }, 100)?;
        // 1 2 3 4 5 8 9 16 17 32 33 64 65 in both directions; 35 and 36 are −65 and −64.
        assert_eq!(schedule.mixing(0).row(0).0.len(), 27);
        for n_nodes in [1, 2, 3] {
            let schedule = connect(&SmallWorld { k: 5 }, n_nodes)?;
            assert_eq!(schedule.mixing(0).row(0).0.len(), n_nodes);
        }
        Ok(())
    }

    #[test]
    fn moved_edges_keep_their_number() {
        for (n_nodes, degree) in [(5, 2), (5, 4), (16, 4), (100, 6)] {
            let ring = Graph::circulant(n_nodes, 1..=degree / 2);
            let still = watts_strogatz(n_nodes, degree, 0.0, &mut seed::rng(1, 0));
            assert_eq!(still, ring);
            let moved = watts_strogatz(n_nodes, degree, 1.0, &mut seed::rng(1, 0));
            assert_eq!(moved.n_edges(), n_nodes * degree / 2);
            assert_eq!(moved == ring, degree + 1 == n_nodes);
        }
        // 600 edges, of which a tenth moves: 60 ± 4 · 7.3; each stays where it is by chance in one
        // of 90.
        let graph = watts_strogatz(200, 6, 0.1, &mut seed::rng(1, 0));
        let ring = Graph::circulant(200, 1..=3);
        let n_moved = ring.edges().filter(|&(a, b)| !graph.has_edge(a, b)).count();
        assert!((30..=90).contains(&n_moved), "{n_moved} of 600 edges moved");
    }

    #[test]
    fn what_fits_no_ring_is_refused() {
        let check = |topology: &dyn Topology, expect: &str| {
            let error = connect(topology, 6).expect_err("fits no ring");
            assert_eq!(error.to_string(), expect);
        };
        check(
            &SmallWorld { k: 0 },
            "small-world: k is 0, expected at least 1",
        );
        let odd = "watts-strogatz: d is 3, expected even, at least 2 and less than the 6 nodes";
        check(&WattsStrogatz { degree: 3, p: 0.1 }, odd);
        let p = "watts-strogatz: p is 2, expected a probability from 0 to 1";
        check(&WattsStrogatz { degree: 4, p: 2.0 }, p);
    }
}
