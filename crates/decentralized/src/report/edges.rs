//! The graph of a mixing matrix as it is drawn: pairs of nodes, and in which order nodes are shown.

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::topology::Clique;

/// Two nodes that exchange models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// The lower of the two, or the sender if models go one way only.
    pub(super) from: usize,
    /// The other one.
    pub(super) to: usize,
    /// Models go one way only.
    pub(super) is_directed: bool,
}

/// What of a topology its pictures show.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) n_nodes: usize,
    pub(super) edges: Vec<Edge>,
    /// Neighbours of each node, ascending, whichever way models go.
    pub(super) neighbours: Vec<Vec<usize>>,
    /// The cliques without nodes that do not exist.
    pub(super) cliques: Vec<Vec<usize>>,
    /// Which of them a node is in, the first if there are several.
    pub(super) clique_of: Vec<Option<usize>>,
    /// The class that a node has most of; all None if classes are unknown.
    pub(super) class_of: Vec<Option<usize>>,
}

impl Graph {
    pub(super) fn new(
        mixing: &MixingMatrix,
        cliques: &[Clique],
        classes: Option<&ClassCounts>,
    ) -> Self {
        let n_nodes = mixing.n_nodes();
        let edges = edges(mixing);
        let mut neighbours = vec![Vec::new(); n_nodes];
        for edge in &edges {
            neighbours[edge.from].push(edge.to);
            neighbours[edge.to].push(edge.from);
        }
        neighbours
            .iter_mut()
            .for_each(|nodes| nodes.sort_unstable());
        let cliques: Vec<Vec<usize>> = cliques
            .iter()
            .map(|clique| members(clique, n_nodes))
            .collect();
        let mut clique_of = vec![None; n_nodes];
        for (clique_idx, clique) in cliques.iter().enumerate().rev() {
            clique
                .iter()
                .for_each(|&node| clique_of[node] = Some(clique_idx));
        }
        let class_of = |node| {
            classes
                .filter(|c| node < c.n_nodes())
                .and_then(|c| main_class(c.node(node)))
        };
        Self {
            n_nodes,
            edges,
            neighbours,
            cliques,
            clique_of,
            class_of: (0..n_nodes).map(class_of).collect(),
        }
    }

    /// The nodes in an order that shows structure: clique by clique, or class by class, where there are
    /// any.
    pub(super) fn order(&self) -> Vec<usize> {
        let rank = |of: Option<usize>| of.unwrap_or(usize::MAX);
        let mut order: Vec<usize> = (0..self.n_nodes).collect();
        order.sort_by_key(|&node| (rank(self.clique_of[node]), rank(self.class_of[node])));
        order
    }

    /// Whether both nodes are in one clique.
    pub(super) fn is_within_clique(&self, edge: &Edge) -> bool {
        let clique = self.clique_of[edge.from];
        clique.is_some() && clique == self.clique_of[edge.to]
    }
}

fn edges(mixing: &MixingMatrix) -> Vec<Edge> {
    let is_entry = |row: usize, col: usize| mixing.row(row).0.binary_search(&(col as u32)).is_ok();
    let edge = |(row, col, _): (usize, usize, f64)| {
        let is_directed = !is_entry(col, row);
        // Of the two entries of an edge both ways, the one of the higher receiver.
        (row != col && (is_directed || col < row)).then_some(Edge {
            from: col,
            to: row,
            is_directed,
        })
    };
    mixing.entries().filter_map(edge).collect()
}

fn members(clique: &Clique, n_nodes: usize) -> Vec<usize> {
    let nodes = clique.iter().map(|&node| node as usize);
    nodes.filter(|&node| node < n_nodes).collect()
}

// The lowest of those with the most examples.
fn main_class(counts: &[u32]) -> Option<usize> {
    let most = counts.iter().copied().max().filter(|&most| most > 0)?;
    counts.iter().position(|&count| count == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: usize, to: usize, is_directed: bool) -> Edge {
        Edge {
            from,
            to,
            is_directed,
        }
    }

    #[test]
    fn edges_know_their_direction() {
        // 0 ↔ 1, and 0 → 2 → 3 → 0.
        let rows = vec![
            vec![(0, 0.25), (1, 0.5), (3, 0.25)],
            vec![(0, 0.5), (1, 0.5)],
            vec![(0, 0.25), (2, 0.75)],
            vec![(2, 0.25), (3, 0.75)],
        ];
        let mixing = MixingMatrix::new(rows).expect("doubly stochastic");
        let graph = Graph::new(&mixing, &[], None);
        let expect = [
            edge(3, 0, true),
            edge(0, 1, false),
            edge(0, 2, true),
            edge(2, 3, true),
        ];
        assert_eq!(graph.edges, expect);
        assert_eq!(graph.neighbours[0], [1, 2, 3]);
    }

    #[test]
    fn nodes_are_in_order_of_cliques_or_classes() {
        let identity = (0..4).map(|node| vec![(node, 1.0)]).collect();
        let mixing = MixingMatrix::new(identity).expect("doubly stochastic");
        let classes = ClassCounts::new(2, vec![0, 5, 5, 0, 1, 2, 0, 0]);
        let graph = Graph::new(&mixing, &[], Some(&classes));
        assert_eq!(graph.class_of, [Some(1), Some(0), Some(1), None]);
        assert_eq!(graph.order(), [1, 0, 2, 3]);
        // A node that does not exist is left out.
        let graph = Graph::new(&mixing, &[vec![2, 3], vec![0, 1, 9]], Some(&classes));
        assert_eq!(graph.order(), [2, 3, 1, 0]);
        assert!(graph.is_within_clique(&edge(0, 1, false)));
        assert!(!graph.is_within_clique(&edge(1, 2, false)));
    }
}
