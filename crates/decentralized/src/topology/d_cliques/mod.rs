//! D-Cliques: nodes in cliques that together hold about the classes of all, and few edges between
//! cliques.
//!
//! In reading order: [`skew`], how far a clique's classes are from those of all; [`greedy_swap`],
//! which makes cliques of little skew; [`InterClique`], the edges between them; [`DCliques`], the
//! rule.
//!
//! # Source
//! Bellet, Kermarrec, Lavoie: D-Cliques, arXiv:2104.07365.

use rand::seq::SliceRandom;

use super::{Clique, Nodes, Schedule, Topology, TopologyError};
use crate::graph::{Graph, metropolis_hastings};
use crate::seed::Rng;

mod greedy_swap;
mod inter;
mod skew;

pub use greedy_swap::{default_steps, greedy_swap, random_cliques};
pub use inter::InterClique;
pub use skew::skew;

/// Cliques by Greedy Swap, connected with one another, with Metropolis–Hastings weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DCliques {
    /// The most nodes of a clique; cliques are of this size or one less. (M in the paper.)
    pub size: usize,
    /// The edges between cliques.
    pub inter: InterClique,
    /// Steps of Greedy Swap; [`default_steps`] if not given. With 0 cliques stay random (the
    /// paper's ablation), and nobody needs to know the classes.
    pub steps: Option<usize>,
    /// Edges removed from each clique at random (the paper's ablation: 1 or 5 of 45).
    pub removed_edges: usize,
}

impl Topology for DCliques {
    fn name(&self) -> String {
        let Self { size, inter, .. } = self;
        let steps = self
            .steps
            .map_or_else(String::new, |steps| format!(",steps={steps}"));
        let removed = match self.removed_edges {
            0 => String::new(),
            removed => format!(",removed-edges={removed}"),
        };
        format!("d-cliques:size={size},inter={inter}{steps}{removed}")
    }

    fn connect(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Schedule, TopologyError> {
        self.check(nodes)?;
        let cliques = self.cliques(nodes, rng)?;
        let mut graph = Graph::new(nodes.n_nodes);
        for clique in &cliques {
            connect_clique(&mut graph, clique, self.removed_edges, rng);
        }
        self.inter.connect(&mut graph, &cliques, self.size, rng);
        let rounds = vec![metropolis_hastings(&graph)];
        Ok(Schedule { rounds, cliques })
    }
}

impl DCliques {
    fn check(&self, nodes: &Nodes<'_>) -> Result<(), TopologyError> {
        let parameter = |parameter, expected: String, got: usize| {
            Err(TopologyError::Parameter {
                topology: "d-cliques",
                parameter,
                expected,
                got: got.to_string(),
            })
        };
        if self.size == 0 {
            return parameter("size", "at least 1".to_owned(), 0);
        }
        let size = self.size.min(nodes.n_nodes.max(1));
        let n_edges = size.saturating_mul(size - 1) / 2;
        if self.removed_edges > n_edges {
            let expected = format!("at most the {n_edges} edges of a clique of {size} nodes");
            return parameter("removed-edges", expected, self.removed_edges);
        }
        let n_cliques = nodes.n_nodes.div_ceil(size);
        nodes.check(
            "d-cliques",
            size.saturating_add(self.inter.degree(n_cliques, size)),
        )
    }

    fn cliques(&self, nodes: &Nodes<'_>, rng: &mut Rng) -> Result<Vec<Clique>, TopologyError> {
        let mut cliques = random_cliques(nodes.n_nodes, self.size, rng);
        let steps = self.steps.unwrap_or_else(|| default_steps(cliques.len()));
        if steps > 0 {
            let topology = "d-cliques";
            let classes = nodes.classes.ok_or(TopologyError::NoClasses { topology })?;
            greedy_swap(&mut cliques, classes, steps, rng);
        }
        cliques.iter_mut().for_each(|clique| clique.sort_unstable());
        Ok(cliques)
    }
}

/// Adds all edges among `clique` but `n_removed` at random.
fn connect_clique(graph: &mut Graph, clique: &[u32], n_removed: usize, rng: &mut Rng) {
    let firsts = clique.iter().enumerate();
    let mut edges: Vec<(u32, u32)> = firsts
        .flat_map(|(i, &a)| clique[i + 1..].iter().map(move |&b| (a, b)))
        .collect();
    if n_removed > 0 {
        edges.shuffle(rng);
    }
    for &(a, b) in edges.iter().skip(n_removed) {
        graph.connect(a as usize, b as usize);
    }
}

#[cfg(test)]
mod tests;
