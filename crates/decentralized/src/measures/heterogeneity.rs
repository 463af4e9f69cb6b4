//! Neighborhood heterogeneity: how far an average over a neighbourhood is from that over all nodes.
//!
//! # Source
//! Le Bars, Bellet, Tommasi, Lavoie, Kermarrec: Refined convergence and topology learning for
//! decentralized SGD with heterogeneous data, arXiv:2204.04452, definition 1 and the bound of §4
//! under label skew.

use serde::{Deserialize, Serialize};

use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::record::null_as_nan;
use crate::topology::Schedule;

/// H = (1/n) Σᵢ E‖Σⱼ W[i, j]·gⱼ − ḡ‖² for noisy gradients gⱼ of nodes, in its two parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heterogeneity {
    /// What remains without noise: neighbourhoods that do not stand for all.
    #[serde(deserialize_with = "null_as_nan")]
    pub bias: f64,
    /// What remains without bias: neighbourhoods that are too small to average the noise away.
    #[serde(deserialize_with = "null_as_nan")]
    pub variance: f64,
}

impl Heterogeneity {
    /// Their sum.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.bias + self.variance
    }

    /// `bias + λ · variance`: for the class proportions of nodes and noise of variance 1 what STL-FW
    /// minimises.
    #[must_use]
    pub fn objective(&self, lambda: f64) -> f64 {
        self.bias + lambda * self.variance
    }

    /// For expected gradients `[n_nodes, width]`, each with noise of variance `noise` (the sum over
    /// its entries): `(1/n) Σᵢ ‖Σⱼ W[i, j]·gⱼ − ḡ‖²` and `(noise/n)·‖W − J‖²`.
    ///
    /// # Panics
    /// If `gradients` has not as many rows as there are nodes.
    #[must_use]
    pub fn of_gradients<T: Copy + Into<f64>>(
        mixing: &MixingMatrix,
        gradients: &[T],
        noise: f64,
    ) -> Self {
        Self {
            bias: bias(mixing, gradients),
            variance: noise * distance_from_average(weights_of(mixing), mixing.n_nodes()),
        }
    }

    /// Under label skew, with the class proportions Π of the nodes in place of gradients:
    /// `(1/n)·‖WΠ − JΠ‖²` and `(noise/n)·‖W − J‖²`, the objective of STL-FW for λ = `noise`.
    ///
    /// # Panics
    /// If `classes` are not those of as many nodes.
    #[must_use]
    pub fn of_labels(mixing: &MixingMatrix, classes: &ClassCounts, noise: f64) -> Self {
        assert_eq!(classes.n_nodes(), mixing.n_nodes(), "nodes with classes");
        let nodes = 0..classes.n_nodes();
        let rows: Vec<f64> = nodes.flat_map(|node| classes.proportions(node)).collect();
        Self::of_gradients(mixing, &rows, noise)
    }

    /// The mean of [`Self::of_labels`] over the rounds of a schedule.
    ///
    /// # Panics
    /// If `classes` are not those of as many nodes.
    #[must_use]
    pub fn of_schedule(schedule: &Schedule, classes: &ClassCounts, noise: f64) -> Self {
        let mut mean = Self::default();
        for mixing in &schedule.rounds {
            let of_round = Self::of_labels(mixing, classes, noise);
            mean.bias += of_round.bias / schedule.rounds.len() as f64;
            mean.variance += of_round.variance / schedule.rounds.len() as f64;
        }
        mean
    }
}

/// `(1/n) Σᵢ ‖Σⱼ W[i, j]·xⱼ − x̄‖²` for `rows`, `[n_nodes, width]`.
fn bias<T: Copy + Into<f64>>(mixing: &MixingMatrix, rows: &[T]) -> f64 {
    let n_nodes = mixing.n_nodes();
    let width = rows.len() / n_nodes.max(1);
    assert_eq!(rows.len(), n_nodes * width, "rows of as many nodes");
    if width == 0 {
        return 0.0;
    }
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        add(&mut mean, 1.0 / n_nodes as f64, row);
    }
    let mut difference = vec![0.0; width];
    let mut sum = 0.0;
    for node in 0..n_nodes {
        difference
            .iter_mut()
            .zip(&mean)
            .for_each(|(to, mean)| *to = -mean);
        let (cols, weights) = mixing.row(node);
        for (&col, &weight) in cols.iter().zip(weights) {
            add(
                &mut difference,
                weight,
                &rows[col as usize * width..][..width],
            );
        }
        sum += difference.iter().map(|x| x * x).sum::<f64>();
    }
    sum / n_nodes as f64
}

fn add<T: Copy + Into<f64>>(to: &mut [f64], weight: f64, row: &[T]) {
    for (to, &x) in to.iter_mut().zip(row) {
        *to += weight * x.into();
    }
}

fn weights_of(mixing: &MixingMatrix) -> impl Iterator<Item = f64> + '_ {
    mixing.entries().map(|(_, _, weight)| weight)
}

/// `(1/n)·‖W − J‖²` in the Frobenius norm, given the entries of W that are not zero; the others differ
/// from J by 1/n each. Summed as squares of `w − 1/n`: the shorter `‖W‖² − 1` is the same number, but
/// cancels where W is near J.
pub(crate) fn distance_from_average(weights: impl Iterator<Item = f64>, n_nodes: usize) -> f64 {
    let n = n_nodes as f64;
    let (mut sum, mut n_weights) = (0.0, 0.0);
    for weight in weights {
        sum += (weight - 1.0 / n).powi(2);
        n_weights += 1.0;
    }
    (sum + (n * n - n_weights) / (n * n)) / n
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::seed;
    use crate::topology::testing::{connect, dense};
    use crate::topology::{BaseGraph, Complete, Exponential, RandomRegular, Ring, TopologyError};

    fn one_class(n_nodes: usize) -> ClassCounts {
        let count = |i: usize| u32::from(i / 10 % 10 == i % 10) * 45;
        ClassCounts::new(10, (0..10 * n_nodes).map(count).collect())
    }

    #[test]
    fn alone_and_all_together_are_as_in_closed_form() -> Result<(), TopologyError> {
        let classes = one_class(100);
        let alone = MixingMatrix::new((0..100).map(|node| vec![(node, 1.0)]).collect());
        let alone = Heterogeneity::of_labels(&alone.expect("the identity"), &classes, 2.0);
        assert!((alone.bias - 0.9).abs() < 1e-12);
        assert!((alone.variance - 2.0 * 0.99).abs() < 1e-12);
        assert!((alone.total() - 2.88).abs() < 1e-12);
        let complete = connect(&Complete, 100)?;
        let together = Heterogeneity::of_labels(complete.mixing(0), &classes, 2.0);
        assert!(together.total().abs() < 1e-12);
        // Ten neighbours of ten classes each: bias 0, (1/10 - 1/100) of the noise.
        let ten = (0..100u32).map(|node| (0..10).map(|i| (node / 10 * 10 + i, 0.1)).collect());
        let ten = MixingMatrix::new(ten.collect()).expect("cliques apart");
        let ten = Heterogeneity::of_labels(&ten, &classes, 1.0);
        assert!(ten.bias.abs() < 1e-12 && (ten.variance - 0.09).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn terms_of_a_matrix_worked_out_by_hand() {
        // Nodes 0 and 1 average, node 2 stays alone; classes (1, 0), (0, 1), (½, ½).
        let half = vec![(0, 0.5), (1, 0.5)];
        let mixing = MixingMatrix::new(vec![half.clone(), half, vec![(2, 1.0)]]);
        let mixing = mixing.expect("doubly stochastic");
        let classes = ClassCounts::new(2, vec![4, 0, 0, 4, 2, 2]);
        let found = Heterogeneity::of_labels(&mixing, &classes, 1.0);
        assert!(found.bias.abs() < 1e-15);
        // ‖W‖² − 1 = 4 · ¼ + 1 − 1.
        assert!((found.variance - 1.0 / 3.0).abs() < 1e-15);
        assert!((found.objective(0.3) - 0.1).abs() < 1e-15);
    }

    #[test]
    fn sparse_sums_are_the_dense_ones() -> Result<(), TopologyError> {
        let (n_nodes, width) = (17, 3);
        let rng = &mut seed::rng(4, 0);
        let rows: Vec<f32> = (0..n_nodes * width).map(|_| rng.random()).collect();
        let random = connect(&RandomRegular { degree: 4 }, n_nodes)?;
        for schedule in [
            connect(&Ring, n_nodes)?,
            connect(&Exponential, n_nodes)?,
            random,
        ] {
            let weights = dense(schedule.mixing(0));
            let (mut bias, mut variance) = (0.0, 0.0);
            for i in 0..n_nodes {
                for k in 0..width {
                    let centred = (0..n_nodes).map(|j| {
                        let weight = weights[i * n_nodes + j] - 1.0 / n_nodes as f64;
                        weight * f64::from(rows[j * width + k])
                    });
                    bias += centred.sum::<f64>().powi(2) / n_nodes as f64;
                }
            }
            for weight in &weights {
                variance += 0.3 * (weight - 1.0 / n_nodes as f64).powi(2) / n_nodes as f64;
            }
            let got = Heterogeneity::of_gradients(schedule.mixing(0), &rows, 0.3);
            assert!((got.bias - bias).abs() < 1e-12 && (got.variance - variance).abs() < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn schedules_have_the_mean_of_their_rounds() -> Result<(), TopologyError> {
        let classes = one_class(12);
        let schedule = connect(&BaseGraph { k: 1 }, 12)?;
        let of_round = |mixing| Heterogeneity::of_labels(mixing, &classes, 1.0);
        let rounds: Vec<Heterogeneity> = schedule.rounds.iter().map(of_round).collect();
        let expect = rounds.iter().map(Heterogeneity::total).sum::<f64>() / rounds.len() as f64;
        let got = Heterogeneity::of_schedule(&schedule, &classes, 1.0).total();
        assert!((got - expect).abs() < 1e-12);
        Ok(())
    }
}
