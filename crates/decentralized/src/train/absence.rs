//! Nodes that miss rounds, as changes of the mixing matrix.
//!
//! A *straggler* computes its step but is too late for the exchange of the round; a node that has
//! *left* does nothing until it comes back. Either way its edges carry nothing, and the weight of each
//! lost edge goes to the receiver's own model: `W'[i, j] = 0`, `W'[i, i] = W[i, i] + W[i, j]`. Rows
//! still sum to one. Columns do too where W is symmetric; where it is not, the mean of the models
//! moves, and [`Absence::bias`] says how much weight is lost or doubled.

use rand::RngExt;

use crate::seed;

/// How often nodes miss rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Absences {
    /// Probability that a node is too late for a round's exchange.
    pub straggle: f64,
    /// Probability that a node leaves in a round.
    pub leave: f64,
    /// Probability that a node that has left comes back in a round.
    pub come_back: f64,
}

impl Absences {
    /// Whether all nodes take part in all rounds.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.straggle == 0.0 && self.leave == 0.0
    }
}

/// Who misses a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Absence {
    /// `[n_nodes]`
    has_left: Vec<bool>,
    /// `[n_nodes]`: neither receives nor sends.
    is_cut_off: Vec<bool>,
    /// Whether others have left than in the round before.
    has_changed: bool,
}

/// Stream of the seed from which rounds draw, beyond those of nodes.
const STREAM: u64 = 1 << 62;

impl Absence {
    /// Nobody is absent before the first round.
    pub(super) fn new(n_nodes: usize) -> Self {
        Self {
            has_left: vec![false; n_nodes],
            is_cut_off: vec![false; n_nodes],
            has_changed: false,
        }
    }

    /// Draws who misses round `round`, given who had left before it.
    pub(super) fn advance(&mut self, absences: &Absences, seed: u64, round: u64) {
        let mut rng = seed::rng(seed, STREAM + round);
        self.has_changed = false;
        for (has_left, is_cut_off) in self.has_left.iter_mut().zip(&mut self.is_cut_off) {
            let turn = match *has_left {
                true => absences.come_back,
                false => absences.leave,
            };
            let turns = rng.random_bool(turn);
            *has_left ^= turns;
            self.has_changed |= turns;
            *is_cut_off = rng.random_bool(absences.straggle) || *has_left;
        }
    }

    /// Whether a node has left, and computes nothing.
    pub(super) fn has_left(&self, node: usize) -> bool {
        self.has_left[node]
    }

    /// Whether a node has left, or come back, since the round before.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Whether a row is exchanged between two nodes.
    pub(super) fn connects(&self, a: usize, b: usize) -> bool {
        !self.is_cut_off[a] && !self.is_cut_off[b]
    }

    /// Links of a round that carry nothing, because one of their ends is cut off.
    pub(super) fn n_lost(&self, weights: &[Vec<(u32, f64)>]) -> u64 {
        let rows = weights.iter().enumerate();
        let lost = rows.map(|(node, row)| {
            let others = row.iter().map(|&(col, _)| col as usize);
            let lost = others.filter(|&col| col != node && !self.connects(node, col));
            lost.count() as u64
        });
        lost.sum()
    }

    /// A row of the mixing matrix without the edges that carry nothing.
    pub(super) fn row(&self, node: usize, row: &[(u32, f64)]) -> Vec<(u32, f64)> {
        let is_kept = |col: u32| col as usize == node || self.connects(node, col as usize);
        let lost: f64 = (row.iter().filter(|(col, _)| !is_kept(*col)))
            .map(|(_, weight)| weight)
            .sum();
        let mut kept: Vec<_> = row
            .iter()
            .copied()
            .filter(|(col, _)| is_kept(*col))
            .collect();
        match kept.binary_search_by_key(&(node as u32), |&(col, _)| col) {
            Ok(at) => kept[at].1 += lost,
            Err(at) => kept.insert(at, (node as u32, lost)),
        }
        kept
    }

    /// Mean absolute deviation from one of the columns of the round's matrix.
    pub(super) fn bias(&self, weights: &[Vec<(u32, f64)>]) -> f64 {
        let mut sums = vec![0.0; weights.len()];
        for (node, row) in weights.iter().enumerate() {
            for (col, weight) in self.row(node, row) {
                sums[col as usize] += weight;
            }
        }
        let deviations = sums.iter().map(|sum: &f64| (sum - 1.0).abs());
        deviations.sum::<f64>() / sums.len().max(1) as f64
    }
}
