//! Random graphs in which every node has the same number of neighbours.

use rand::RngExt;

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::graph::{Graph, metropolis_hastings};
use crate::seed::Rng;

/// Exchanges tried for each edge. At n = 1000 and d = 3, 4, 10 the spectral gap and the smallest
/// eigenvalue no longer change from one or two on; 20 take 0.16 s at n = 10,000, d = 10.
const EXCHANGES_PER_EDGE: usize = 20;

/// A random graph in which every node has `degree` neighbours; connected if `degree` is at least
/// two.
///
/// Starts from a ring-like graph and lets random pairs of edges exchange their ends, which leaves
/// all degrees as they are and, repeated, comes close to a uniform choice among all such graphs.
/// Pairing half-edges at random is uniform too, but has to be begun anew ever more often as degrees
/// rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomRegular {
    /// Neighbours of each node: 1 to n − 1, and `degree · n` even.
    pub degree: usize,
}

impl Topology for RandomRegular {
    fn name(&self) -> String {
        format!("random:d={}", self.degree)
    }

    fn connect(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("random", self.degree.min(nodes.n_nodes))?;
        let n_nodes = nodes.n_nodes;
        let expected = |expected: String| {
            Err(TopologyError::Parameter {
                topology: "random",
                parameter: "d",
                expected,
                got: self.degree.to_string(),
            })
        };
        if self.degree == 0 || self.degree >= n_nodes {
            return expected(format!("at least 1 and less than the {n_nodes} nodes"));
        }
        if self.degree % 2 == 1 && n_nodes % 2 == 1 {
            return expected(format!(
                "an even degree for the odd number of {n_nodes} nodes"
            ));
        }
        let graph = random_regular(n_nodes, self.degree, rng);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

/// A random graph of `degree`, which must be less than `n_nodes` and even where `n_nodes` is odd.
fn random_regular(n_nodes: usize, degree: usize, rng: &mut Rng) -> Graph {
    let across = (degree % 2 == 1).then_some(n_nodes / 2);
    let mut swaps = Exchanges::new(Graph::circulant(n_nodes, (1..=degree / 2).chain(across)));
    for _ in 0..EXCHANGES_PER_EDGE * swaps.edges.len() {
        swaps.exchange(rng);
    }
    if degree > 1 {
        swaps.join_components(rng);
    }
    swaps.graph
}

/// A graph whose edges exchange ends.
struct Exchanges {
    graph: Graph,
    /// Each edge once, in any direction.
    edges: Vec<(usize, usize)>,
}

impl Exchanges {
    fn new(graph: Graph) -> Self {
        let edges = graph.edges().collect();
        Self { graph, edges }
    }

    /// Lets two random edges exchange an end, if that gives two new edges.
    fn exchange(&mut self, rng: &mut Rng) {
        let first = rng.random_range(0..self.edges.len());
        let second = rng.random_range(0..self.edges.len());
        if rng.random() {
            let (a, b) = self.edges[first];
            self.edges[first] = (b, a);
        }
        self.exchange_ends(first, second);
    }

    /// `(a, b)` and `(c, d)` become `(a, d)` and `(c, b)`; false if that would be no simple graph.
    fn exchange_ends(&mut self, first: usize, second: usize) -> bool {
        let ((a, b), (c, d)) = (self.edges[first], self.edges[second]);
        let is_simple =
            a != d && c != b && !self.graph.has_edge(a, d) && !self.graph.has_edge(c, b);
        if first == second || !is_simple {
            return false;
        }
        self.graph.disconnect(a, b);
        self.graph.disconnect(c, d);
        self.graph.connect(a, d);
        self.graph.connect(c, b);
        self.edges[first] = (a, d);
        self.edges[second] = (c, b);
        true
    }

    /// Joins components by exchanging ends between them. Every component has an edge on a cycle, as
    /// all degrees are two or more; exchanged with any edge of another component it joins the two,
    /// so that random edges soon do.
    fn join_components(&mut self, rng: &mut Rng) {
        let mut components = self.graph.components();
        while let [_, .., last] = components.as_slice() {
            let is_last = |&edge: &usize| last.binary_search(&(self.edges[edge].0 as u32)).is_ok();
            let (inside, outside): (Vec<_>, Vec<_>) = (0..self.edges.len()).partition(is_last);
            let first = inside[rng.random_range(0..inside.len())];
            let second = outside[rng.random_range(0..outside.len())];
            self.exchange_ends(first, second);
            let after = self.graph.components();
            if after.len() < components.len() {
                components = after;
            } else {
                self.exchange_ends(first, second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::seed;
    use crate::topology::testing::connect;

    #[test]
    fn degrees_are_equal_and_the_graph_connected() {
        for (n_nodes, degree) in [
            (2, 1),
            (3, 2),
            (5, 4),
            (16, 3),
            (17, 2),
            (100, 10),
            (100, 2),
        ] {
            for seed in 0..20 {
                let graph = random_regular(n_nodes, degree, &mut seed::rng(seed, 0));
                assert!((0..n_nodes).all(|node| graph.degree(node) == degree));
                assert_eq!(graph.components().len(), 1, "n {n_nodes}, d {degree}");
            }
        }
        // A perfect matching is the only graph of degree one: it cannot be connected.
        let graph = random_regular(16, 1, &mut seed::rng(0, 0));
        assert_eq!(graph.components().len(), 8);
    }

    #[test]
    fn every_graph_is_about_as_likely_as_any_other() {
        // 15 perfect matchings of six nodes; the 60 cycles of six nodes are all the connected
        // graphs of degree two.
        for (n_nodes, degree, n_graphs) in [(6, 1, 15), (6, 2, 60)] {
            let n_draws = 200 * n_graphs;
            let mut counts = BTreeMap::new();
            for seed in 0..n_draws {
                let graph = random_regular(n_nodes, degree, &mut seed::rng(seed as u64, 0));
                *counts.entry(graph.edges().collect::<Vec<_>>()).or_insert(0) += 1;
            }
            assert_eq!(counts.len(), n_graphs);
            // Four standard deviations of a count with mean 200 are 57.
            assert!(counts.values().all(|&count| (140..=260).contains(&count)));
        }
    }

    #[test]
    fn impossible_degrees_are_refused() {
        let check = |n_nodes, degree, expect: &str| {
            let error = connect(&RandomRegular { degree }, n_nodes).expect_err("impossible");
            assert_eq!(error.to_string(), expect);
        };
        check(
            5,
            5,
            "random: d is 5, expected at least 1 and less than the 5 nodes",
        );
        check(
            5,
            0,
            "random: d is 0, expected at least 1 and less than the 5 nodes",
        );
        check(
            5,
            3,
            "random: d is 3, expected an even degree for the odd number of 5 nodes",
        );
    }
}
