//! What a round sends over the network.

use crate::topology::{Clique, Schedule};

/// Bytes of a parameter: f32.
const BYTES_PER_PARAM: f64 = 4.0;

/// Messages and bytes of a round, in the mean over a period. A message is one model, or gradient,
/// from one node to one other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Messages of all nodes together.
    pub messages: f64,
    /// Bytes of all nodes together.
    pub bytes: f64,
    /// Bytes that the busiest node sends.
    pub max_bytes_sent: f64,
}

impl Traffic {
    /// For models of `n_params` parameters. With `clique_averaging` there is a round of gradients
    /// before each of models: see [`n_messages`].
    #[must_use]
    pub fn of(schedule: &Schedule, n_params: usize, clique_averaging: bool) -> Self {
        let n_nodes = schedule.mixing(0).n_nodes();
        let n_rounds = schedule.rounds.len() as f64;
        let mut sent = vec![0u64; n_nodes];
        for round in 0..schedule.rounds.len() {
            for_each_message(schedule, round, clique_averaging, |sender| {
                sent[sender] += 1;
            });
        }
        let size = n_params as f64 * BYTES_PER_PARAM;
        let messages = sent.iter().sum::<u64>() as f64 / n_rounds;
        let most = sent.iter().copied().max().unwrap_or(0) as f64 / n_rounds;
        Self {
            messages,
            bytes: messages * size,
            max_bytes_sent: most * size,
        }
    }
}

/// Messages of round `round`: a model along every link and, with `clique_averaging`, also a
/// gradient along those within a clique.
#[must_use]
pub fn n_messages(schedule: &Schedule, round: usize, clique_averaging: bool) -> u64 {
    let mut n_messages = 0;
    for_each_message(schedule, round, clique_averaging, |_| n_messages += 1);
    n_messages
}

/// Calls `on_sent` with the sender of each message of a round.
fn for_each_message(
    schedule: &Schedule,
    round: usize,
    clique_averaging: bool,
    mut on_sent: impl FnMut(usize),
) {
    let mixing = schedule.mixing(round);
    let cliques = if clique_averaging {
        &schedule.cliques[..]
    } else {
        &[]
    };
    let clique_of = clique_of(cliques, mixing.n_nodes());
    for (receiver, sender, _) in mixing.entries().filter(|(row, col, _)| row != col) {
        on_sent(sender);
        if clique_of[sender].is_some() && clique_of[sender] == clique_of[receiver] {
            on_sent(sender);
        }
    }
}

/// `[n_nodes]`: the clique of each node, if it is in one.
fn clique_of(cliques: &[Clique], n_nodes: usize) -> Vec<Option<usize>> {
    let mut clique_of = vec![None; n_nodes];
    for (idx, clique) in cliques.iter().enumerate() {
        for &node in clique {
            clique_of[node as usize] = Some(idx);
        }
    }
    clique_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::connect;
    use crate::topology::{
        BaseGraph, Complete, DCliques, InterClique, OnePeerExponential, Ring, TopologyError,
    };

    #[test]
    fn every_link_carries_a_model() -> Result<(), TopologyError> {
        let traffic = Traffic::of(&connect(&Ring, 100)?, 7850, false);
        let expect = Traffic {
            messages: 200.0,
            bytes: 200.0 * 31_400.0,
            max_bytes_sent: 2.0 * 31_400.0,
        };
        assert_eq!(traffic, expect);
        let schedule = connect(&OnePeerExponential, 100)?;
        assert_eq!(Traffic::of(&schedule, 1, true).messages, 100.0);
        // A base graph has idle nodes: rounds differ, and their mean counts.
        let schedule = connect(&BaseGraph { k: 1 }, 5)?;
        let by_round: Vec<u64> = (0..5)
            .map(|round| n_messages(&schedule, round, false))
            .collect();
        assert_eq!(by_round, [4, 4, 4, 4, 4]);
        assert_eq!(n_messages(&schedule, 5, false), by_round[0]);
        Ok(())
    }

    #[test]
    fn clique_averaging_adds_gradients_along_clique_edges() -> Result<(), TopologyError> {
        let rule = DCliques {
            size: 10,
            inter: InterClique::FullyConnected,
            steps: Some(0),
            removed_edges: 5,
        };
        let schedule = connect(&rule, 100)?;
        // 40 edges in each of ten cliques and 45 between them.
        assert_eq!(n_messages(&schedule, 0, false), 2 * 445);
        assert_eq!(n_messages(&schedule, 0, true), 2 * 445 + 2 * 400);
        Ok(())
    }

    #[test]
    fn d_cliques_send_less_than_four_percent_of_everything() -> Result<(), TopologyError> {
        let rule = DCliques {
            size: 10,
            inter: InterClique::FullyConnected,
            steps: Some(0),
            removed_edges: 0,
        };
        let with_gradients = Traffic::of(&connect(&rule, 1000)?, 1, true).messages;
        let complete = Traffic::of(&connect(&Complete, 1000)?, 1, false).messages;
        assert_eq!(with_gradients, 18_900.0 + 9_000.0);
        // The paper doubles all edges, where we count gradients within cliques alone.
        assert!(1.0 - with_gradients / complete > 0.96);
        Ok(())
    }
}
