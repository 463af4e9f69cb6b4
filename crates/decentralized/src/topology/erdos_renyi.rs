//! Random graphs in which every edge is there or not, independent of the others.

use rand::RngExt;

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::graph::{Graph, metropolis_hastings};
use crate::seed::Rng;

/// G(n, p): each of the n·(n − 1)/2 edges exists with probability `p`. May well be disconnected;
/// likely connected from p = ln(n)/n on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErdosRenyi {
    /// Probability of an edge, 0 to 1.
    pub p: f64,
}

impl Topology for ErdosRenyi {
    fn name(&self) -> String {
        format!("erdos-renyi:p={}", self.p)
    }

    fn connect(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Schedule, TopologyError> {
        if !(0.0..=1.0).contains(&self.p) {
            return Err(TopologyError::Parameter {
                topology: "erdos-renyi",
                parameter: "p",
                expected: "a probability from 0 to 1".to_owned(),
                got: self.p.to_string(),
            });
        }
        let degree = (self.p * nodes.n_nodes as f64).ceil();
        nodes.check("erdos-renyi", degree as usize)?;
        let graph = erdos_renyi(nodes.n_nodes, self.p, rng);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

/// Walks the pairs `(low, high)` in ascending order of `high`, then `low`, and leaps from edge to
/// edge: the number of pairs without one is geometrically distributed, so the work is that of the
/// edges alone.
///
/// # Source
/// Batagelj, Brandes: Efficient generation of large random networks, 2005.
fn erdos_renyi(n_nodes: usize, p: f64, rng: &mut Rng) -> Graph {
    let mut graph = Graph::new(n_nodes);
    let (mut low, mut high) = (0, 0);
    loop {
        low += gap(p, rng);
        while low >= high {
            low -= high;
            high += 1;
            if high >= n_nodes {
                return graph;
            }
        }
        graph.connect(low, high);
        low += 1;
    }
}

/// How many pairs come before the next edge: k with probability (1 − p)ᵏ·p.
fn gap(p: f64, rng: &mut Rng) -> usize {
    // In (0, 1]: its logarithm is finite.
    let uniform = 1.0 - rng.random::<f64>();
    let gap = uniform.ln() / (-p).ln_1p();
    // No edges at all where p is 0 (the gap is infinite, or 0/0); far beyond the pairs of any
    // graph.
    match gap < (1u64 << 62) as f64 && p > 0.0 {
        true => gap as usize,
        false => 1 << 62,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use crate::topology::testing::connect;

    #[test]
    fn all_edges_or_none() {
        for n_nodes in [1, 2, 3, 17] {
            let rng = &mut seed::rng(1, 0);
            assert_eq!(erdos_renyi(n_nodes, 0.0, rng).n_edges(), 0);
            let all = n_nodes * (n_nodes - 1) / 2;
            assert_eq!(erdos_renyi(n_nodes, 1.0, rng).n_edges(), all);
        }
    }

    #[test]
    fn each_edge_exists_with_probability_p() {
        let (n_nodes, p, n_draws) = (6, 0.3, 4000);
        let mut counts = [[0; 6]; 6];
        for seed in 0..n_draws {
            for (a, b) in erdos_renyi(n_nodes, p, &mut seed::rng(seed, 0)).edges() {
                counts[a][b] += 1;
            }
        }
        // 1200 expected, with a standard deviation of 29.
        for (a, b) in Graph::circulant(n_nodes, 1..=3).edges() {
            assert!((1085..=1315).contains(&counts[a][b]), "edge {a} {b}");
        }
    }

    #[test]
    fn the_number_of_edges_is_binomial() {
        // Of 4,498,500 pairs with p = 0.002: mean 8,997, standard deviation 95.
        let n_edges = erdos_renyi(3000, 0.002, &mut seed::rng(5, 0)).n_edges();
        assert!((8617..=9377).contains(&n_edges), "{n_edges} edges");
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        for (p, got) in [(1.5, "1.5"), (-0.1, "-0.1"), (f64::NAN, "NaN")] {
            let error = connect(&ErdosRenyi { p }, 10).expect_err("no probability");
            let expect = format!("erdos-renyi: p is {got}, expected a probability from 0 to 1");
            assert_eq!(error.to_string(), expect);
        }
    }
}
