//! Undirected graphs without loops or parallel edges, and the weights that suit them.

use crate::mixing::MixingMatrix;

/// An undirected simple graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// `[n_nodes]`, each list ascending; an edge is in the lists of both its ends.
    neighbours: Vec<Vec<u32>>,
}

impl Graph {
    /// A graph of `n_nodes` nodes without edges.
    ///
    /// # Panics
    /// If nodes cannot be numbered by a `u32`.
    #[must_use]
    pub fn new(n_nodes: usize) -> Self {
        assert!(u32::try_from(n_nodes).is_ok(), "{n_nodes} nodes");
        let neighbours = vec![Vec::new(); n_nodes];
        Self { neighbours }
    }

    /// A graph in which node `i` is connected to `i ± offset` (modulo the number of nodes) for each
    /// of `offsets`.
    #[must_use]
    pub fn circulant(n_nodes: usize, offsets: impl IntoIterator<Item = usize>) -> Self {
        let mut graph = Self::new(n_nodes);
        for offset in offsets {
            for node in 0..n_nodes {
                graph.connect(node, (node + offset) % n_nodes);
            }
        }
        graph
    }

    /// Adds an edge; false if there is one already, or if both ends are the same node.
    ///
    /// # Panics
    /// If a node is not in the graph.
    pub fn connect(&mut self, a: usize, b: usize) -> bool {
        let Err(b_idx) = self.position(a, b) else {
            return false;
        };
        if a == b {
            return false;
        }
        self.neighbours[a].insert(b_idx, b as u32);
        let (Ok(a_idx) | Err(a_idx)) = self.position(b, a);
        self.neighbours[b].insert(a_idx, a as u32);
        true
    }

    /// Removes an edge; false if there is none.
    ///
    /// # Panics
    /// If a node is not in the graph.
    pub fn disconnect(&mut self, a: usize, b: usize) -> bool {
        let (Ok(b_idx), Ok(a_idx)) = (self.position(a, b), self.position(b, a)) else {
            return false;
        };
        self.neighbours[a].remove(b_idx);
        self.neighbours[b].remove(a_idx);
        true
    }

    /// Number of nodes.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.neighbours.len()
    }

    /// Number of edges, each counted once.
    #[must_use]
    pub fn n_edges(&self) -> usize {
        self.neighbours.iter().map(Vec::len).sum::<usize>() / 2
    }

    /// The neighbours of a node, ascending.
    #[must_use]
    pub fn neighbours(&self, node: usize) -> &[u32] {
        &self.neighbours[node]
    }

    /// Number of neighbours of a node.
    #[must_use]
    pub fn degree(&self, node: usize) -> usize {
        self.neighbours[node].len()
    }

    /// Whether two nodes share an edge.
    #[must_use]
    pub fn has_edge(&self, a: usize, b: usize) -> bool {
        self.position(a, b).is_ok()
    }

    /// The edges `(a, b)` with `a < b`, ascending.
    pub fn edges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let lists = self.neighbours.iter().enumerate();
        lists.flat_map(|(a, list)| {
            let ends = list.iter().map(|&b| b as usize);
            ends.filter_map(move |b| (a < b).then_some((a, b)))
        })
    }

    /// The connected components, each ascending, in the order of their first nodes.
    #[must_use]
    pub fn components(&self) -> Vec<Vec<u32>> {
        let mut components = Vec::new();
        let mut is_seen = vec![false; self.n_nodes()];
        for first in 0..self.n_nodes() {
            if !is_seen[first] {
                components.push(self.reach(first as u32, &mut is_seen));
            }
        }
        components
    }

    /// What can be reached from `first`, ascending; marks it as seen.
    fn reach(&self, first: u32, is_seen: &mut [bool]) -> Vec<u32> {
        is_seen[first as usize] = true;
        let mut reached = vec![first];
        let mut next = 0;
        while let Some(&node) = reached.get(next) {
            next += 1;
            for &neighbour in self.neighbours(node as usize) {
                if !std::mem::replace(&mut is_seen[neighbour as usize], true) {
                    reached.push(neighbour);
                }
            }
        }
        reached.sort_unstable();
        reached
    }

    /// Where `b` stands, or belongs, among the neighbours of `a`.
    fn position(&self, a: usize, b: usize) -> Result<usize, usize> {
        self.neighbours[a].binary_search(&(b as u32))
    }
}

/// Metropolis–Hastings weights: `W[i, j] = 1 / (max(dᵢ, dⱼ) + 1)` on the edges of `graph`, and on
/// the diagonal what is missing to one. Symmetric, and no two nodes need to know more than their
/// degrees.
///
/// # Source
/// Xiao, Boyd, Lall: Distributed average consensus with time-varying Metropolis weights, 2006, eq.
/// 4.
#[must_use]
pub fn metropolis_hastings(graph: &Graph) -> MixingMatrix {
    let row = |node: usize| {
        let weight = |&other: &u32| {
            let degree = graph.degree(node).max(graph.degree(other as usize));
            (other, 1.0 / (degree + 1) as f64)
        };
        let mut row: Vec<(u32, f64)> = graph.neighbours(node).iter().map(weight).collect();
        let given: f64 = row.iter().map(|&(_, weight)| weight).sum();
        row.push((node as u32, 1.0 - given));
        row
    };
    let rows = (0..graph.n_nodes()).map(row).collect();
    MixingMatrix::new(rows).expect("Metropolis-Hastings weights are doubly stochastic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_come_and_go_once() {
        let mut graph = Graph::new(4);
        assert!(graph.connect(2, 0));
        assert!(graph.connect(2, 1));
        assert!(!graph.connect(0, 2), "there already");
        assert!(!graph.connect(3, 3), "a loop");
        assert_eq!(graph.neighbours(2), [0, 1]);
        assert_eq!(graph.edges().collect::<Vec<_>>(), [(0, 2), (1, 2)]);
        assert_eq!(graph.components(), [vec![0, 1, 2], vec![3]]);
        assert!(graph.disconnect(1, 2));
        assert!(!graph.disconnect(1, 2));
        assert!(!graph.has_edge(2, 1) && graph.has_edge(2, 0));
        assert_eq!((graph.n_edges(), graph.degree(2)), (1, 1));
        assert_eq!(graph.components(), [vec![0, 2], vec![1], vec![3]]);
    }

    #[test]
    fn circulant_graphs_merge_equal_edges() {
        assert_eq!(Graph::circulant(1, [1, 2]).n_edges(), 0);
        assert_eq!(Graph::circulant(2, [1]).n_edges(), 1);
        assert_eq!(Graph::circulant(6, [3]).n_edges(), 3);
        assert_eq!(Graph::circulant(6, [1, 5, 7]), Graph::circulant(6, [1]));
    }

    #[test]
    fn weights_follow_the_larger_degree() {
        // A path 0 - 1 - 2 and a node alone.
        let mut graph = Graph::new(4);
        graph.connect(0, 1);
        graph.connect(1, 2);
        let mixing = metropolis_hastings(&graph);
        let third = 1.0 / 3.0;
        assert_eq!(mixing.row(0), (&[0, 1][..], &[1.0 - third, third][..]));
        assert_eq!(mixing.row(1).0, [0, 1, 2]);
        assert!((mixing.row(1).1[1] - third).abs() < 1e-15);
        assert_eq!(mixing.row(3), (&[3][..], &[1.0][..]));
    }
}
