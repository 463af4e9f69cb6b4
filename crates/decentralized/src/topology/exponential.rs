//! Links that double in length: every node reaches every other in ⌈log₂ n⌉ steps.
//!
//! # Source
//! Assran et al., arXiv:1811.10792; Ying et al., arXiv:2110.13363.

use super::{Nodes, Schedule, Topology, TopologyError};
use crate::mixing::MixingMatrix;
use crate::seed::Rng;

/// Node `i` sends to `i + 2ᵏ` (modulo n) for `k = 0 .. ⌈log₂ n⌉ − 1`. Directed; all weights of a
/// row are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exponential;

/// The links of [`Exponential`] in turns, one a round: round `t` averages the models of `i` and
/// `i − 2ᵏ` where `k = t mod ⌈log₂ n⌉`. Where n is a power of two, a period averages exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnePeerExponential;

impl Topology for Exponential {
    fn name(&self) -> String {
        "exponential".to_owned()
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("exponential", powers_of_two(nodes.n_nodes).count())?;
        let offsets: Vec<usize> = powers_of_two(nodes.n_nodes).collect();
        Ok(Schedule::fixed(circulant(nodes.n_nodes, &offsets)))
    }
}

impl Topology for OnePeerExponential {
    fn name(&self) -> String {
        "one-peer-exponential".to_owned()
    }

    fn connect(&self, nodes: &Nodes<'_>, _: &mut Rng) -> Result<Schedule, TopologyError> {
        nodes.check("one-peer-exponential", powers_of_two(nodes.n_nodes).count())?;
        let n_nodes = nodes.n_nodes;
        let mut rounds: Vec<_> = powers_of_two(n_nodes)
            .map(|offset| circulant(n_nodes, &[offset]))
            .collect();
        if rounds.is_empty() {
            rounds.push(circulant(n_nodes, &[]));
        }
        let cliques = Vec::new();
        Ok(Schedule { rounds, cliques })
    }
}

/// 1, 2, 4, …: the ⌈log₂ n⌉ powers of two below `n`.
pub(super) fn powers_of_two(n: usize) -> impl Iterator<Item = usize> {
    let double = |&offset: &usize| offset.checked_mul(2);
    std::iter::successors(Some(1), double).take_while(move |&offset| offset < n)
}

/// Node `i` receives from itself and from `i − offset`, with equal weights.
fn circulant(n_nodes: usize, offsets: &[usize]) -> MixingMatrix {
    let weight = 1.0 / (offsets.len() + 1) as f64;
    let row = |node: usize| {
        let senders = offsets
            .iter()
            .map(|offset| (node + n_nodes - offset) % n_nodes);
        let all = std::iter::once(node).chain(senders);
        all.map(|sender| (sender as u32, weight)).collect()
    };
    let rows = (0..n_nodes).map(row).collect();
    MixingMatrix::new(rows).expect("equal weights of different shifts are doubly stochastic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::{connect, dense, distance_to_average, product};

    #[test]
    fn links_double_in_length() -> Result<(), TopologyError> {
        // From i to i + 1, i + 2, i + 4: node 0 of five hears of 4, 3 and 1.
        let schedule = connect(&Exponential, 5)?;
        assert_eq!(
            schedule.mixing(0).row(0),
            (&[0, 1, 3, 4][..], &[0.25; 4][..])
        );
        for (n_nodes, degree) in [(1, 0), (2, 1), (16, 4), (17, 5), (100, 7), (128, 7)] {
            let schedule = connect(&Exponential, n_nodes)?;
            assert_eq!(schedule.mixing(0).row(n_nodes - 1).0.len(), degree + 1);
            let one_peer = connect(&OnePeerExponential, n_nodes)?;
            assert_eq!(one_peer.rounds.len(), degree.max(1));
        }
        Ok(())
    }

    #[test]
    fn one_peer_averages_exactly_over_a_power_of_two() -> Result<(), TopologyError> {
        for n_nodes in [1, 2, 4, 16, 128] {
            let schedule = connect(&OnePeerExponential, n_nodes)?;
            assert!(distance_to_average(&product(&schedule)) < 1e-12);
        }
        let schedule = connect(&OnePeerExponential, 17)?;
        assert!(distance_to_average(&product(&schedule)) > 1e-3);
        let weights = dense(schedule.mixing(2));
        assert_eq!((weights[0], weights[13]), (0.5, 0.5));
        Ok(())
    }
}
