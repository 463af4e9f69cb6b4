//! The edges between cliques. Each goes from one of the least loaded nodes of a clique, at random,
//! to one of the other: load is the number of edges to other cliques.

use std::collections::BTreeMap;
use std::fmt;

use rand::RngExt;

use crate::graph::Graph;
use crate::seed::Rng;
use crate::topology::Clique;
use crate::topology::exponential::powers_of_two;

/// How cliques are connected with one another.
///
/// # Source
/// D-Cliques, arXiv:2104.07365, §5.3, and its authors' simulator for what the paper leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterClique {
    /// Every clique with every other.
    FullyConnected,
    /// Cliques on a ring, one edge to the next.
    Ring,
    /// As many cliques as a clique has nodes are all connected with one another and then count as
    /// one; and so on, until one is left.
    Fractal,
    /// Cliques on a ring, each with those at `± (2ˢ + t)`, `t = 0, 1`, for `s = 0 .. ⌈log₂
    /// n_cliques⌉ − 1`. Pairs that meet in several ways have several edges, if different nodes are
    /// chosen.
    SmallWorld,
}

impl InterClique {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 4] = [
        Self::FullyConnected,
        Self::Ring,
        Self::Fractal,
        Self::SmallWorld,
    ];

    /// Adds the edges between `cliques` to `graph`; `size` is the number of nodes of a whole
    /// clique.
    pub(super) fn connect(self, graph: &mut Graph, cliques: &[Clique], size: usize, rng: &mut Rng) {
        let unloaded = |clique: &Clique| Members {
            by_load: BTreeMap::from([(0, clique.clone())]),
        };
        let mut members: Vec<Members> = cliques.iter().map(unloaded).collect();
        match self {
            Self::FullyConnected => fully_connect(graph, &mut members, rng),
            Self::Ring => ring(graph, &mut members, rng),
            Self::Fractal => fractal(graph, members, size, rng),
            Self::SmallWorld => small_world(graph, &mut members, rng),
        }
    }

    /// About how many edges to other cliques a node has at most.
    pub(super) fn degree(self, n_cliques: usize, size: usize) -> usize {
        match self {
            Self::FullyConnected => n_cliques.div_ceil(size),
            Self::Ring => 2,
            // A group of cliques has no more edges out of it than it has nodes to share them, level by
            // level; a small world has two offsets each way at every power of two.
            Self::Fractal => 2 + n_cliques.max(2).ilog2() as usize / size.max(2).ilog2() as usize,
            Self::SmallWorld => 4 * (1 + n_cliques.max(2).ilog2() as usize),
        }
    }
}

/// The name on the command line.
impl fmt::Display for InterClique {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FullyConnected => "full",
            Self::Ring => "ring",
            Self::Fractal => "fractal",
            Self::SmallWorld => "small-world",
        })
    }
}

/// The nodes of a clique, or of several that count as one.
#[derive(Default)]
struct Members {
    /// The nodes with so many edges to other cliques; no list is empty.
    by_load: BTreeMap<usize, Vec<u32>>,
}

impl Members {
    /// One of the least loaded nodes, which has one edge more from now on.
    fn take(&mut self, rng: &mut Rng) -> usize {
        let mut lightest = self.by_load.first_entry().expect("no clique is empty");
        let load = *lightest.key();
        let chosen = rng.random_range(0..lightest.get().len());
        let node = lightest.get_mut().swap_remove(chosen);
        if lightest.get().is_empty() {
            lightest.remove();
        }
        self.by_load.entry(load + 1).or_default().push(node);
        node as usize
    }

    fn merge(&mut self, other: Self) {
        for (load, mut nodes) in other.by_load {
            self.by_load.entry(load).or_default().append(&mut nodes);
        }
    }
}

fn link(graph: &mut Graph, first: &mut Members, second: &mut Members, rng: &mut Rng) {
    let (a, b) = (first.take(rng), second.take(rng));
    graph.connect(a, b);
}

/// Links two of `cliques`; a clique is not linked with itself.
fn link_two(graph: &mut Graph, cliques: &mut [Members], i: usize, j: usize, rng: &mut Rng) {
    if let Ok([first, second]) = cliques.get_disjoint_mut([i, j]) {
        link(graph, first, second, rng);
    }
}

fn fully_connect(graph: &mut Graph, cliques: &mut [Members], rng: &mut Rng) {
    for i in 0..cliques.len() {
        for j in i + 1..cliques.len() {
            link_two(graph, cliques, i, j, rng);
        }
    }
}

fn ring(graph: &mut Graph, cliques: &mut [Members], rng: &mut Rng) {
    for i in 1..cliques.len() {
        link_two(graph, cliques, i - 1, i, rng);
    }
    // Two cliques have their one edge already.
    if cliques.len() > 2 {
        link_two(graph, cliques, cliques.len() - 1, 0, rng);
    }
}

fn fractal(graph: &mut Graph, mut cliques: Vec<Members>, size: usize, rng: &mut Rng) {
    // Groups of one would go on for ever.
    let size = size.max(2);
    while cliques.len() > 1 {
        for group in cliques.chunks_mut(size) {
            fully_connect(graph, group, rng);
        }
        let mut merged: Vec<Members> = Vec::new();
        for (i, clique) in cliques.into_iter().enumerate() {
            match merged.last_mut().filter(|_| !i.is_multiple_of(size)) {
                Some(group) => group.merge(clique),
                None => merged.push(clique),
            }
        }
        cliques = merged;
    }
}

fn small_world(graph: &mut Graph, cliques: &mut [Members], rng: &mut Rng) {
    let n_cliques = cliques.len();
    for clique in 0..n_cliques {
        for offset in powers_of_two(n_cliques).flat_map(|offset| [offset, offset + 1]) {
            let before = (clique + 2 * n_cliques - offset) % n_cliques;
            link_two(graph, cliques, clique, before, rng);
            link_two(graph, cliques, clique, (clique + offset) % n_cliques, rng);
        }
    }
}
