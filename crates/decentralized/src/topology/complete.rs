//! Everybody with everybody: training equals that of one machine, at the price of n² messages.

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::mixing::MixingMatrix;
use crate::seed::Rng;

/// The complete graph, W = J: every round averages all models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete;

impl Topology for Complete {
    fn name(&self) -> String {
        "complete".to_owned()
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("complete", nodes.n_nodes.saturating_sub(1))?;
        let n_nodes = nodes.n_nodes as u32;
        let row = || {
            let weight = 1.0 / f64::from(n_nodes);
            (0..n_nodes).map(|col| (col, weight)).collect()
        };
        let rows = (0..n_nodes).map(|_| row()).collect();
        let mixing = MixingMatrix::new(rows).expect("rows of equal weights sum to one");
        Ok(Schedule::fixed(mixing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::{connect, dense};

    #[test]
    fn every_entry_is_one_over_n() -> Result<(), TopologyError> {
        for n_nodes in [1, 2, 3, 7, 100] {
            let schedule = connect(&Complete, n_nodes)?;
            let weights = dense(schedule.mixing(0));
            assert!(weights.iter().all(|&w| w == 1.0 / n_nodes as f64));
        }
        Ok(())
    }

    #[test]
    fn matrices_that_no_machine_holds_are_refused() {
        let error = connect(&Complete, 100_000).expect_err("10¹⁰ weights");
        assert_eq!(
            error.to_string(),
            "complete over 100000 nodes has some 10000000000 links, expected at most 67108864"
        );
        let error = connect(&Complete, 0).expect_err("no nodes");
        assert_eq!(
            error.to_string(),
            "complete: there are 0 nodes, expected 1 to 4294967295"
        );
    }
}
