//! What a learned topology minimises, `g(W) = bias + λ · variance`: the bound on neighborhood
//! heterogeneity under label skew.
//!
//! With Π the `[n_nodes, n_classes]` matrix of class proportions and `J = 11ᵀ/n`,
//! `bias = (1/n)‖WΠ − JΠ‖_F²` and `variance = (1/n)‖W − J‖_F²`.

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;

/// The two terms of the objective, without units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heterogeneity {
    /// `(1/n)‖WΠ − JΠ‖_F²`: how far the classes that neighbours hold together are from those of all.
    pub bias: f64,
    /// `(1/n)‖W − J‖_F²`: how much of the gradients' noise averaging with W leaves.
    pub variance: f64,
}

impl Heterogeneity {
    /// Of a mixing matrix on nodes that hold `classes`.
    ///
    /// # Panics
    /// If `mixing` and `classes` are of different numbers of nodes.
    ///
    /// # Source
    /// arXiv:2204.04452, the bound for label skew.
    #[must_use]
    pub fn of(mixing: &MixingMatrix, classes: &ClassCounts) -> Self {
        Self {
            bias: bias(mixing, classes),
            variance: variance(mixing),
        }
    }

    /// `g(W) = bias + λ · variance`.
    #[must_use]
    pub fn objective(self, lambda: f64) -> f64 {
        self.bias + lambda * self.variance
    }
}

/// `(1/n)‖WΠ − JΠ‖_F²`: zero if every node's neighbours hold together what all nodes hold.
///
/// # Panics
/// If `mixing` and `classes` are of different numbers of nodes.
#[must_use]
pub fn bias(mixing: &MixingMatrix, classes: &ClassCounts) -> f64 {
    let n_nodes = mixing.n_nodes();
    assert_eq!(n_nodes, classes.n_nodes(), "nodes of W and Π");
    let pi = Proportions::of(classes);
    let mut mixed = vec![0.0; n_nodes * pi.n_classes];
    for (row, col, weight) in mixing.entries() {
        let sums = &mut mixed[row * pi.n_classes..][..pi.n_classes];
        for (sum, share) in sums.iter_mut().zip(pi.node(col)) {
            *sum += weight * share;
        }
    }
    bias_of_mixed(&mixed, &pi.mean)
}

/// `(1/n)‖W − J‖_F²`: zero for the complete graph, `1 − 1/n` without any edge.
#[must_use]
pub fn variance(mixing: &MixingMatrix) -> f64 {
    let weights = mixing.entries().map(|(_, _, weight)| weight);
    variance_of_weights(weights, mixing.n_nodes())
}

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

/// The variance, given the entries of W that are not zero. Summed as squares of `w − 1/n`: the
/// shorter `‖W‖_F² − 1` is the same number, but cancels where W is near J.
pub(super) fn variance_of_weights(weights: impl Iterator<Item = f64>, n_nodes: usize) -> f64 {
    let n = n_nodes as f64;
    let (mut sum, mut n_weights) = (0.0, 0.0);
    for weight in weights {
        sum += (weight - 1.0 / n).powi(2);
        n_weights += 1.0;
    }
    (sum + (n * n - n_weights) / (n * n)) / n
}

pub(super) fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes 0 and 1 average, node 2 stays alone; classes (1, 0), (0, 1), (½, ½).
    fn example() -> (MixingMatrix, ClassCounts) {
        let half = vec![(0, 0.5), (1, 0.5)];
        let mixing = MixingMatrix::new(vec![half.clone(), half, vec![(2, 1.0)]]);
        let classes = ClassCounts::new(2, vec![4, 0, 0, 4, 2, 2]);
        (mixing.expect("doubly stochastic"), classes)
    }

    #[test]
    fn terms_of_a_matrix_worked_out_by_hand() {
        let (mixing, classes) = example();
        let found = Heterogeneity::of(&mixing, &classes);
        assert!(found.bias.abs() < 1e-15);
        // ‖W‖_F² − 1 = 4 · ¼ + 1 − 1.
        assert!((found.variance - 1.0 / 3.0).abs() < 1e-15);
        assert!((found.objective(0.3) - 0.1).abs() < 1e-15);
    }

    #[test]
    fn without_edges_and_with_all() {
        let (_, classes) = example();
        let identity = MixingMatrix::new((0..3).map(|i| vec![(i, 1.0)]).collect()).expect("I");
        // Two nodes at distance² ½ from (½, ½), one at 0.
        assert!((bias(&identity, &classes) - 1.0 / 3.0).abs() < 1e-15);
        assert!((variance(&identity) - 2.0 / 3.0).abs() < 1e-15);
        let third = vec![(0, 1.0 / 3.0), (1, 1.0 / 3.0), (2, 1.0 / 3.0)];
        let complete = MixingMatrix::new(vec![third; 3]).expect("J");
        assert!(bias(&complete, &classes) < 1e-30);
        assert!(variance(&complete) < 1e-30);
    }
}
