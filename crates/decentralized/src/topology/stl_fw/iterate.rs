//! W while it is learned: a convex combination of the identity and of one permutation an iteration.

use super::objective::{Proportions, bias_of_mixed, squared_distance};
use crate::measures::{Heterogeneity, distance_from_average};
use crate::mixing::MixingMatrix;

/// W and WΠ. Rounding does not build up: a step scales what is there by `1 − γ ≤ 1`, errors
/// included, and adds at most one rounding of its own to each entry.
#[derive(Clone)]
pub(super) struct Iterate {
    /// The entries of each row of W, in the order in which they came.
    pub(super) rows: Vec<Vec<(u32, f64)>>,
    /// WΠ, `[n_nodes, n_classes]`.
    pub(super) mixed: Vec<f64>,
}

impl Iterate {
    /// `W = I`.
    pub(super) fn identity(pi: &Proportions) -> Self {
        let n_nodes = pi.rows.len() / pi.n_classes;
        Self {
            rows: (0..n_nodes as u32).map(|node| vec![(node, 1.0)]).collect(),
            mixed: pi.rows.clone(),
        }
    }

    /// The terms of the objective.
    pub(super) fn heterogeneity(&self, pi: &Proportions) -> Heterogeneity {
        let weights = self.rows.iter().flatten().map(|&(_, weight)| weight);
        Heterogeneity {
            bias: bias_of_mixed(&self.mixed, &pi.mean),
            variance: distance_from_average(weights, self.rows.len()),
        }
    }

    /// The most neighbours that a node sends to or receives from.
    pub(super) fn max_degree(&self) -> usize {
        let mut n_sent = vec![0; self.rows.len()];
        let mut max_received = 0;
        for (row, entries) in self.rows.iter().enumerate() {
            let neighbours = entries.iter().filter(|&&(col, _)| col as usize != row);
            let mut n_received = 0;
            for &(col, _) in neighbours {
                n_sent[col as usize] += 1;
                n_received += 1;
            }
            max_received = max_received.max(n_received);
        }
        n_sent.into_iter().max().unwrap_or(0).max(max_received)
    }

    /// How far to move from W towards a permutation P (the column of each row), to the minimum of g on that way, within 0 to 1:
    /// `γ = {Σ_i (Π̄ − WΠ_i)·(PΠ_i − WΠ_i) − λ⟨W − J, P − W⟩} / {‖(P − W)Π‖_F² + λ‖P − W‖_F²}`.
    ///
    /// # Source
    /// arXiv:2204.04452, the exact line search.
    pub(super) fn exact_step(&self, to: &[u32], pi: &Proportions, lambda: f64) -> f64 {
        let (mut descent, mut curvature) = (0.0, 0.0);
        let mixed_rows = self.mixed.chunks_exact(pi.n_classes);
        for (row, (mixed, entries)) in mixed_rows.zip(&self.rows).enumerate() {
            let target = pi.node(to[row] as usize);
            for ((share, mean), target) in mixed.iter().zip(&pi.mean).zip(target) {
                descent += (mean - share) * (target - share);
            }
            // ⟨J, P − W⟩ = 0: both sum to one in every row.
            let norm: f64 = entries.iter().map(|&(_, weight)| weight * weight).sum();
            let overlap = weight_of(entries, to[row]);
            descent -= lambda * (overlap - norm);
            curvature += squared_distance(target, mixed);
            curvature += lambda * (norm + 1.0 - 2.0 * overlap);
        }
        let is_moving = descent > 0.0 && curvature > 0.0;
        if is_moving {
            (descent / curvature).min(1.0)
        } else {
            0.0
        }
    }

    /// `W ← (1 − γ)W + γP`.
    pub(super) fn step(&mut self, to: &[u32], pi: &Proportions, gamma: f64) {
        let mixed_rows = self.mixed.chunks_exact_mut(pi.n_classes);
        for (row, (mixed, entries)) in mixed_rows.zip(&mut self.rows).enumerate() {
            let target = pi.node(to[row] as usize);
            for (share, target) in mixed.iter_mut().zip(target) {
                *share = (1.0 - gamma) * *share + gamma * target;
            }
            for (_, weight) in entries.iter_mut() {
                *weight *= 1.0 - gamma;
            }
            match entries.iter_mut().find(|entry| entry.0 == to[row]) {
                Some((_, weight)) => *weight += gamma,
                None => entries.push((to[row], gamma)),
            }
            // A step of γ = 1 leaves nothing of the old neighbours.
            entries.retain(|&(_, weight)| weight > 0.0);
        }
    }

    /// W as other modules know it.
    pub(super) fn into_mixing(self) -> MixingMatrix {
        MixingMatrix::new(self.rows).expect("convex combinations of permutations stay stochastic")
    }
}

/// `W[row, col]`, by the entries of the row: never more than a few.
pub(super) fn weight_of(entries: &[(u32, f64)], col: u32) -> f64 {
    let entry = entries.iter().find(|entry| entry.0 == col);
    entry.map_or(0.0, |&(_, weight)| weight)
}
