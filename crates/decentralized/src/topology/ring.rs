//! The ring: the fewest edges, and the slowest mixing.

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::graph::{Graph, metropolis_hastings};
use crate::seed::Rng;

/// Node `i` with `i − 1` and `i + 1`, modulo the number of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring;

impl Topology for Ring {
    fn name(&self) -> String {
        "ring".to_owned()
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("ring", 2)?;
        let graph = Graph::circulant(nodes.n_nodes, [1]);
        Ok(Schedule::fixed(metropolis_hastings(&graph)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::{connect, dense};

    #[test]
    fn neighbours_share_thirds() -> Result<(), TopologyError> {
        let third = 1.0 / 3.0;
        let weights = dense(connect(&Ring, 5)?.mixing(0));
        let first = [third, third, 0.0, 0.0, third];
        for (got, expect) in weights[..5].iter().zip(first) {
            assert!((got - expect).abs() < 1e-15);
        }
        assert_eq!(dense(connect(&Ring, 2)?.mixing(0)), [0.5; 4]);
        assert_eq!(dense(connect(&Ring, 1)?.mixing(0)), [1.0]);
        Ok(())
    }
}
