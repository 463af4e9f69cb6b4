//! What a learned topology minimises, `g(W) = bias + λ · variance`: the bound on neighborhood
//! heterogeneity under label skew, [`crate::measures::Heterogeneity`].
//!
//! With Π the `[n_nodes, n_classes]` matrix of class proportions and `J = 11ᵀ/n`,
//! `bias = (1/n)‖WΠ − JΠ‖_F²` and `variance = (1/n)‖W − J‖_F²`. Here is what learning keeps of them, so
//! that an iteration costs no product WΠ.

use crate::classes::ClassCounts;

/// The rows of Π and their mean (every row of JΠ).
#[derive(Clone, Debug)]
pub(super) struct Proportions {
    pub(super) n_classes: usize,
    /// `[n_nodes, n_classes]`
    pub(super) rows: Vec<f64>,
    /// `[n_classes]`
    pub(super) mean: Vec<f64>,
}

impl Proportions {
    pub(super) fn of(classes: &ClassCounts) -> Self {
        let (n_nodes, n_classes) = (classes.n_nodes(), classes.n_classes());
        let rows: Vec<f64> = (0..n_nodes)
            .flat_map(|node| classes.proportions(node))
            .collect();
        let mut mean = vec![0.0; n_classes];
        for row in rows.chunks_exact(n_classes) {
            for (sum, share) in mean.iter_mut().zip(row) {
                *sum += share;
            }
        }
        for sum in &mut mean {
            *sum /= n_nodes as f64;
        }
        Self {
            n_classes,
            rows,
            mean,
        }
    }

    /// Whether two nodes hold the same shares of classes.
    pub(super) fn has_twins(&self) -> bool {
        let mut rows: Vec<&[f64]> = self.rows.chunks_exact(self.n_classes).collect();
        rows.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        rows.windows(2).any(|pair| pair[0] == pair[1])
    }

    pub(super) fn node(&self, node: usize) -> &[f64] {
        &self.rows[node * self.n_classes..][..self.n_classes]
    }
}

/// The bias, given `mixed = WΠ`, `[n_nodes, n_classes]`.
pub(super) fn bias_of_mixed(mixed: &[f64], mean: &[f64]) -> f64 {
    let rows = mixed.chunks_exact(mean.len());
    let n_nodes = rows.len();
    let sum: f64 = rows.map(|row| squared_distance(row, mean)).sum();
    sum / n_nodes as f64
}

pub(super) fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}
