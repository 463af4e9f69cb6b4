//! Decentralized estimation of a mean: the smallest problem on which a topology shows what it does
//! against heterogeneity.
//!
//! Node `i` draws from a mixture of unit normals, almost always from that of its own class. All
//! minimise `E (θ − x)²` together by D-SGD with one sample a step; the minimum is the mean over all
//! nodes' mixtures.
//!
//! # Source
//! arXiv:2204.04452, section 6.1.

use rand::RngExt;
use rand_distr::{Distribution, Gamma, StandardNormal};

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::seed::Rng;

/// Where every estimate starts.
const START: f64 = 10.0;

/// Mixtures are rounded to so many examples a node, for topologies that count them.
const EXAMPLES: f64 = 1e6;

/// Nodes with a mixture each.
#[derive(Clone, Debug, PartialEq)]
pub struct MeanEstimation {
    /// Mean of each class.
    class_means: Vec<f64>,
    /// Mixtures Π, `[n_nodes, n_classes]`.
    proportions: Vec<Vec<f64>>,
}

impl MeanEstimation {
    /// Classes with means evenly spaced over `[-m, m]`; nodes take turns with their own class, of
    /// which they hold about 99 %.
    #[must_use]
    pub fn new(n_nodes: usize, n_classes: usize, m: f64, rng: &mut Rng) -> Self {
        let step = 2.0 * m / (n_classes.max(2) - 1) as f64;
        let class_means = (0..n_classes).map(|class| step * class as f64 - m);
        let mixture = |node: usize| dirichlet(n_classes, node % n_classes, rng);
        Self {
            class_means: class_means.collect(),
            proportions: (0..n_nodes).map(mixture).collect(),
        }
    }

    /// The mixtures as counts of examples.
    #[must_use]
    pub fn classes(&self) -> ClassCounts {
        let shares = self.proportions.iter().flatten();
        let counts = shares.map(|share| (share * EXAMPLES).round() as u32);
        ClassCounts::new(self.class_means.len(), counts.collect())
    }

    /// `B` of the bound on heterogeneity: the largest squared distance of two classes' gradients,
    /// `4m²` for each unit of the factor 2 of the gradient's own.
    #[must_use]
    pub fn class_distance(&self) -> f64 {
        let ends = (self.class_means.first(), self.class_means.last());
        match ends {
            (Some(first), Some(last)) => (last - first).powi(2),
            _ => 0.0,
        }
    }

    /// Mean squared error of the nodes' estimates after `n_rounds` of D-SGD, for each of the step
    /// sizes, all of which see the same samples: `θ ← W(θ − 2η(θ − x))`.
    #[must_use]
    pub fn errors(
        &self,
        mixing: &MixingMatrix,
        step_sizes: &[f64],
        n_rounds: usize,
        rng: &mut Rng,
    ) -> Vec<f64> {
        let (n_nodes, n_sizes) = (self.proportions.len(), step_sizes.len());
        // [n_nodes, n_sizes]
        let mut estimates = vec![START; n_nodes * n_sizes];
        let mut stepped = estimates.clone();
        for _ in 0..n_rounds {
            for (node, mixture) in self.proportions.iter().enumerate() {
                let x = self.sample(mixture, rng);
                let row = node * n_sizes..(node + 1) * n_sizes;
                let rows = stepped[row.clone()].iter_mut().zip(&estimates[row]);
                for ((stepped, theta), eta) in rows.zip(step_sizes) {
                    *stepped = theta - 2.0 * eta * (theta - x);
                }
            }
            estimates.fill(0.0);
            for (to, from, weight) in mixing.entries() {
                for size in 0..n_sizes {
                    estimates[to * n_sizes + size] += weight * stepped[from * n_sizes + size];
                }
            }
        }
        let target = self.mean();
        let error = |size: usize| {
            let of_nodes = estimates.iter().skip(size).step_by(n_sizes);
            of_nodes.map(|theta| (theta - target).powi(2)).sum::<f64>() / n_nodes as f64
        };
        (0..n_sizes).map(error).collect()
    }

    /// The mean over all nodes' mixtures.
    fn mean(&self) -> f64 {
        let means = self.proportions.iter().map(|mixture| {
            let classes = mixture.iter().zip(&self.class_means);
            classes.map(|(share, mean)| share * mean).sum::<f64>()
        });
        means.sum::<f64>() / self.proportions.len() as f64
    }

    fn sample(&self, mixture: &[f64], rng: &mut Rng) -> f64 {
        let mut left: f64 = rng.random();
        let class = mixture.iter().position(|share| {
            left -= share;
            left < 0.0
        });
        let noise: f64 = StandardNormal.sample(rng);
        self.class_means[class.unwrap_or(mixture.len() - 1)] + noise
    }
}

/// A mixture of concentration 100 for each class and 100,000 for one's own.
fn dirichlet(n_classes: usize, own: usize, rng: &mut Rng) -> Vec<f64> {
    let mut gamma = |concentration: f64| match Gamma::new(concentration, 1.0) {
        Ok(gamma) => gamma.sample(rng),
        Err(_) => unreachable!("concentrations are positive"),
    };
    let draws: Vec<f64> = (0..n_classes)
        .map(|class| gamma(if class == own { 100_000.0 } else { 100.0 }))
        .collect();
    let total: f64 = draws.iter().sum();
    draws.into_iter().map(|draw| draw / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use crate::topology::{Complete, Nodes, Topology};

    #[test]
    fn all_nodes_together_find_the_mean() {
        let mut rng = seed::rng(3, 0);
        let problem = MeanEstimation::new(40, 10, 5.0, &mut rng);
        let nodes = Nodes {
            n_nodes: 40,
            classes: None,
        };
        let schedule = Complete.connect(&nodes, &mut rng).expect("complete");
        let errors = problem.errors(schedule.mixing(0), &[0.001, 0.1], 100, &mut rng);
        // Unit noise and 1/40 of the spread of classes, times η/(2 − 2η) at most.
        assert!(errors[1] < 0.1, "{errors:?}");
        assert!(errors[0] > 10.0, "{errors:?}");
        let own = problem.classes();
        assert!((0..40).all(|node| own.proportions(node)[node % 10] > 0.98));
    }
}
