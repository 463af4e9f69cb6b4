//! Directed graphs: who sends to whom.

use crate::graph::Graph;
use crate::mixing::MixingMatrix;

/// A directed graph without loops or parallel links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digraph {
    /// `[n_nodes]`: to whom each node sends, ascending.
    successors: Vec<Vec<u32>>,
}

impl Digraph {
    /// The links of several mixing matrices of as many nodes together: `j` sends to `i` where an
    /// entry `W[i, j]` is positive. No nodes without matrices.
    #[must_use]
    pub fn of<'a>(matrices: impl IntoIterator<Item = &'a MixingMatrix>) -> Self {
        let mut successors: Vec<Vec<u32>> = Vec::new();
        for mixing in matrices {
            successors.resize(mixing.n_nodes(), Vec::new());
            for (row, col, _) in mixing.entries().filter(|(row, col, _)| row != col) {
                successors[col].push(row as u32);
            }
            // After each matrix, so that no list holds what many rounds repeat.
            for list in &mut successors {
                list.sort_unstable();
                list.dedup();
            }
        }
        Self { successors }
    }

    /// Number of nodes.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.successors.len()
    }

    /// Number of links.
    #[must_use]
    pub fn n_links(&self) -> usize {
        self.successors.iter().map(Vec::len).sum()
    }

    /// To whom a node sends, ascending.
    #[must_use]
    pub fn successors(&self, node: usize) -> &[u32] {
        &self.successors[node]
    }

    /// The same without directions: its components are the weakly connected ones.
    #[must_use]
    pub fn undirected(&self) -> Graph {
        let mut graph = Graph::new(self.n_nodes());
        for (node, list) in self.successors.iter().enumerate() {
            for &other in list {
                graph.connect(node, other as usize);
            }
        }
        graph
    }

    /// The strongly connected components, in which every node can reach every other; each
    /// ascending, in the order of their first nodes.
    ///
    /// # Source
    /// Tarjan: Depth-first search and linear graph algorithms, 1972; with a stack of its own, as
    /// paths may be as long as there are nodes.
    #[must_use]
    pub fn strong_components(&self) -> Vec<Vec<u32>> {
        let mut search = Search::new(self);
        for root in 0..self.n_nodes() {
            if search.found_at[root] == UNSEEN {
                search.visit(root);
            }
        }
        let mut components = search.components;
        components.sort_unstable();
        components
    }
}

const UNSEEN: usize = usize::MAX;

/// Tarjan's depth-first search.
struct Search<'a> {
    graph: &'a Digraph,
    n_found: usize,
    /// `[n_nodes]`: the order in which nodes were found.
    found_at: Vec<usize>,
    /// `[n_nodes]`: the earliest found node that is known to be in the same component.
    low: Vec<usize>,
    /// Nodes of components that are not complete.
    open: Vec<usize>,
    is_open: Vec<bool>,
    components: Vec<Vec<u32>>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Digraph) -> Self {
        let n_nodes = graph.n_nodes();
        Self {
            graph,
            n_found: 0,
            found_at: vec![UNSEEN; n_nodes],
            low: vec![0; n_nodes],
            open: Vec::new(),
            is_open: vec![false; n_nodes],
            components: Vec::new(),
        }
    }

    fn visit(&mut self, root: usize) {
        // Nodes on the path from the root, and how many of their links have been followed.
        let mut path = vec![(root, 0)];
        self.find(root);
        while let Some((node, n_followed)) = path.last_mut() {
            let node = *node;
            if let Some(&next) = self.graph.successors(node).get(*n_followed) {
                *n_followed += 1;
                let next = next as usize;
                if self.found_at[next] == UNSEEN {
                    self.find(next);
                    path.push((next, 0));
                } else if self.is_open[next] {
                    self.low[node] = self.low[node].min(self.found_at[next]);
                }
                continue;
            }
            path.pop();
            if let Some(&(parent, _)) = path.last() {
                self.low[parent] = self.low[parent].min(self.low[node]);
            }
            if self.low[node] == self.found_at[node] {
                self.close(node);
            }
        }
    }

    fn find(&mut self, node: usize) {
        self.found_at[node] = self.n_found;
        self.low[node] = self.n_found;
        self.n_found += 1;
        self.open.push(node);
        self.is_open[node] = true;
    }

    /// Completes the component that was found from `first` on.
    fn close(&mut self, first: usize) {
        let start = self.open.iter().rposition(|&node| node == first);
        let members = self.open.split_off(start.unwrap_or(0));
        let mut component: Vec<u32> = members.iter().map(|&node| node as u32).collect();
        for &node in &members {
            self.is_open[node] = false;
        }
        component.sort_unstable();
        self.components.push(component);
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::mixing::MixingError;
    use crate::seed;

    #[test]
    fn links_point_from_sender_to_receiver() -> Result<(), MixingError> {
        // Node 0 hears of 1, 1 of 2, 2 of 0; node 3 of nobody.
        let rows = vec![
            vec![(1, 1.0)],
            vec![(2, 1.0)],
            vec![(0, 1.0)],
            vec![(3, 1.0)],
        ];
        let graph = Digraph::of([&MixingMatrix::new(rows)?]);
        assert_eq!(graph.successors(1), [0]);
        assert_eq!((graph.n_nodes(), graph.n_links()), (4, 3));
        assert_eq!(graph.strong_components(), [vec![0, 1, 2], vec![3]]);
        assert_eq!(graph.undirected().components(), [vec![0, 1, 2], vec![3]]);
        Ok(())
    }

    #[test]
    fn strong_components_are_what_reaches_each_other() {
        for seed in 0..200 {
            let rng = &mut seed::rng(seed, 0);
            let n_nodes = rng.random_range(1..12);
            let link = |_| {
                (0..n_nodes as u32)
                    .filter(|_| rng.random_bool(0.15))
                    .collect()
            };
            let graph = Digraph {
                successors: (0..n_nodes).map(link).collect(),
            };
            let reaches = |from: usize, to: usize| {
                let mut reached = vec![from];
                let mut next = 0;
                while let Some(&node) = reached.get(next) {
                    let others = graph.successors(node).iter().map(|&other| other as usize);
                    let new: Vec<usize> = others.filter(|other| !reached.contains(other)).collect();
                    reached.extend(new);
                    next += 1;
                }
                reached.contains(&to)
            };
            let components = graph.strong_components();
            assert_eq!(components.iter().map(Vec::len).sum::<usize>(), n_nodes);
            for component in &components {
                for a in 0..n_nodes {
                    let first = component[0] as usize;
                    let is_mutual = reaches(a, first) && reaches(first, a);
                    assert_eq!(component.contains(&(a as u32)), is_mutual);
                }
            }
        }
    }

    #[test]
    fn long_paths_need_no_deep_stack() -> Result<(), MixingError> {
        let n_nodes = 200_000;
        let shift = |node: u32| vec![((node + 1) % n_nodes, 1.0)];
        let mixing = MixingMatrix::new((0..n_nodes).map(shift).collect())?;
        assert_eq!(Digraph::of([&mixing]).strong_components().len(), 1);
        Ok(())
    }
}
