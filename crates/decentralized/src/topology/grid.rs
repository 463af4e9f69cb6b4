//! Grids of rows and columns as equal as the number of nodes allows; a prime number of nodes gives
//! one row.

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::graph::{Graph, metropolis_hastings};
use crate::seed::Rng;

/// A grid with borders: corners have two neighbours, the inside has four. (The D-Cliques authors'
/// grid.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid;

/// A grid whose rows and columns are rings, so that every node has four neighbours (with fewer than
/// three rows, less).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torus;

impl Topology for Grid {
    fn name(&self) -> String {
        "grid".to_owned()
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("grid", 4)?;
        let graph = lattice(nodes.n_nodes, false);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

impl Topology for Torus {
    fn name(&self) -> String {
        "torus".to_owned()
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("torus", 4)?;
        let graph = lattice(nodes.n_nodes, true);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

/// Rows and columns, as equal as possible, rows no more than columns.
fn shape(n_nodes: usize) -> (usize, usize) {
    let n_rows = (1..=n_nodes.isqrt())
        .rev()
        .find(|&n| n_nodes.is_multiple_of(n));
    let n_rows = n_rows.unwrap_or(1);
    (n_rows, n_nodes / n_rows)
}

fn lattice(n_nodes: usize, wraps: bool) -> Graph {
    let (n_rows, n_cols) = shape(n_nodes);
    let mut graph = Graph::new(n_nodes);
    for row in 0..n_rows {
        for col in 0..n_cols {
            let node = row * n_cols + col;
            if wraps || col + 1 < n_cols {
                graph.connect(node, row * n_cols + (col + 1) % n_cols);
            }
            if wraps || row + 1 < n_rows {
                graph.connect(node, (row + 1) % n_rows * n_cols + col);
            }
        }
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_as_equal_as_possible() {
        let check = |n_nodes, expect| assert_eq!(shape(n_nodes), expect);
        check(1, (1, 1));
        check(12, (3, 4));
        check(17, (1, 17));
        check(100, (10, 10));
        check(1000, (25, 40));
    }

    #[test]
    fn edges_follow_rows_and_columns() {
        // r rows of c - 1 edges and c columns of r - 1; wrapped, two a node.
        assert_eq!(lattice(12, false).n_edges(), 3 * 3 + 4 * 2);
        assert_eq!(lattice(12, true).n_edges(), 24);
        assert_eq!(lattice(12, false).neighbours(5), [1, 4, 6, 9]);
        assert_eq!(lattice(12, true).neighbours(0), [1, 3, 4, 8]);
        assert_eq!(lattice(17, false).n_edges(), 16);
        assert_eq!(lattice(17, true), Graph::circulant(17, [1]));
        // Two rows wrap onto the edges that are there already.
        assert_eq!(lattice(10, true).n_edges(), 2 * 5 + 5);
    }
}
