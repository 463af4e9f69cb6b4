//! How far the classes of nodes, neighbourhoods and cliques are from those of all nodes.

use serde::Serialize;

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::topology::d_cliques::skew;
use crate::topology::{Clique, Schedule};

/// The skew `Σₗ |p(l) − p_all(l)|`, 0 to 2, of several groups of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LabelSkew {
    /// Over the groups.
    pub mean: f64,
    /// Of the worst group.
    pub max: f64,
}

impl LabelSkew {
    /// Of nodes by themselves.
    #[must_use]
    pub fn of_nodes(classes: &ClassCounts) -> Self {
        let nodes = 0..classes.n_nodes();
        Self::of(classes, nodes.map(|node| classes.proportions(node)))
    }

    /// Of neighbourhoods: node `i` sees the proportions `Σⱼ W[i, j]·Πⱼ`.
    ///
    /// # Panics
    /// If `classes` are not those of as many nodes.
    #[must_use]
    pub fn of_neighbourhoods(mixing: &MixingMatrix, classes: &ClassCounts) -> Self {
        assert_eq!(classes.n_nodes(), mixing.n_nodes(), "nodes with classes");
        let nodes = 0..classes.n_nodes();
        let proportions: Vec<_> = nodes
            .clone()
            .map(|node| classes.proportions(node))
            .collect();
        let seen = nodes.map(|node| {
            let mut seen = vec![0.0; classes.n_classes()];
            let (cols, weights) = mixing.row(node);
            for (&col, weight) in cols.iter().zip(weights) {
                let pairs = seen.iter_mut().zip(&proportions[col as usize]);
                pairs.for_each(|(to, share)| *to += weight * share);
            }
            seen
        });
        Self::of(classes, seen)
    }

    /// Of the neighbourhoods of every round of a schedule: the mean over rounds, and the worst of any.
    ///
    /// # Panics
    /// If `classes` are not those of as many nodes.
    #[must_use]
    pub fn of_schedule(schedule: &Schedule, classes: &ClassCounts) -> Self {
        let rounds = schedule.rounds.iter();
        let mut skew = Self::default();
        for of_round in rounds.map(|mixing| Self::of_neighbourhoods(mixing, classes)) {
            skew.mean += of_round.mean / schedule.rounds.len() as f64;
            skew.max = skew.max.max(of_round.max);
        }
        skew
    }

    /// Of cliques, each with the examples of its nodes together.
    ///
    /// # Panics
    /// If a clique has a node of which `classes` does not know.
    #[must_use]
    pub fn of_cliques(cliques: &[Clique], classes: &ClassCounts) -> Self {
        let of_clique = |clique: &Clique| {
            let nodes = clique.iter().map(|&node| node as usize);
            classes.proportions_of(nodes)
        };
        Self::of(classes, cliques.iter().map(of_clique))
    }

    fn of(classes: &ClassCounts, groups: impl Iterator<Item = Vec<f64>>) -> Self {
        let all = classes.proportions_of(0..classes.n_nodes());
        let skews: Vec<f64> = groups.map(|group| skew(&group, &all)).collect();
        Self {
            mean: skews.iter().sum::<f64>() / skews.len().max(1) as f64,
            max: skews.iter().copied().fold(0.0, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::testing::connect;
    use crate::topology::{BaseGraph, Complete, Ring, TopologyError};

    // One class of K on each node: 1 − 1/K too much of it, (K − 1)/K too little of the others.
    #[test]
    fn one_class_a_node_is_the_most_skewed() {
        let identity = (0..100).map(|i| if i % 11 == 0 { 7 } else { 0 }).collect();
        let skew = LabelSkew::of_nodes(&ClassCounts::new(10, identity));
        assert!((skew.mean - 1.8).abs() < 1e-12 && (skew.max - 1.8).abs() < 1e-12);
        let none = LabelSkew::of_nodes(&ClassCounts::new(10, Vec::new()));
        assert_eq!(none, LabelSkew::default());
    }

    #[test]
    fn schedules_have_the_mean_of_their_rounds_and_the_worst_of_any() -> Result<(), TopologyError> {
        let classes = ClassCounts::new(2, vec![4, 0, 2, 2, 0, 4, 0, 4, 1, 3]);
        let schedule = connect(&BaseGraph { k: 1 }, 5)?;
        let of_round = |mixing| LabelSkew::of_neighbourhoods(mixing, &classes);
        let rounds: Vec<LabelSkew> = schedule.rounds.iter().map(of_round).collect();
        let mean = rounds.iter().map(|skew| skew.mean).sum::<f64>() / rounds.len() as f64;
        let max = rounds.iter().map(|skew| skew.max).fold(0.0, f64::max);
        let got = LabelSkew::of_schedule(&schedule, &classes);
        assert!((got.mean - mean).abs() < 1e-12 && got.max == max);
        Ok(())
    }

    #[test]
    fn groups_are_compared_with_all() -> Result<(), TopologyError> {
        // Two classes, four nodes: 4 + 0, 2 + 2, 0 + 4, 0 + 4. All: 6 of 16 and 10 of 16.
        let classes = ClassCounts::new(2, vec![4, 0, 2, 2, 0, 4, 0, 4]);
        let check = |got: LabelSkew, mean: f64, max: f64| {
            assert!(
                (got.mean - mean).abs() < 1e-12 && (got.max - max).abs() < 1e-12,
                "{got:?}"
            );
        };
        let nodes = (1.25 + 0.25 + 0.75 + 0.75) / 4.0;
        check(LabelSkew::of_nodes(&classes), nodes, 1.25);
        let cliques = [vec![0, 3], vec![1, 2]];
        check(LabelSkew::of_cliques(&cliques, &classes), 0.25, 0.25);
        check(LabelSkew::of_cliques(&[], &classes), 0.0, 0.0);
        let complete = connect(&Complete, 4)?;
        check(
            LabelSkew::of_neighbourhoods(complete.mixing(0), &classes),
            0.0,
            0.0,
        );
        // On the ring 3-0-1, 0-1-2, 1-2-3, 2-3-0: 1.5, 1.5, 0.5 and 1 of 3 are of the first class.
        let ring = connect(&Ring, 4)?;
        let shares = [1.5 / 3.0, 1.5 / 3.0, 0.5 / 3.0, 1.0 / 3.0];
        let skews = shares.map(|share: f64| 2.0 * (share - 0.375).abs());
        let mean = skews.iter().sum::<f64>() / 4.0;
        check(
            LabelSkew::of_neighbourhoods(ring.mixing(0), &classes),
            mean,
            skews[2],
        );
        Ok(())
    }
}
