//! Classes in proportions drawn from a Dirichlet distribution.

use rand::RngExt;
use rand::distr::Open01;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Gamma};

use super::{
    Labels, Partition, PartitionError, Partitioner, check_sizes, even_part, without_empty_nodes,
};
use crate::seed::Rng;

/// Below this a draw is one class and nothing else to within rounding.
const MIN_ALPHA: f64 = 1e-6;

/// How many examples nodes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// As many as any other node, or one more.
    Equal,
    /// As many as the draws happen to give.
    Natural,
}

/// Nodes differ the more in their classes the smaller α is; α → ∞ is at random, α → 0 one class each.
///
/// With equal sizes each node, in random order, draws its proportions of classes, Π_i ~ Dir(α·1) over
/// classes, then its examples one by one: a class by Π_i among those not yet exhausted (by what is left
/// of them where Π_i gives none of these a share), and an example of it. The last nodes so get what is
/// left. With natural sizes each *class* draws the shares of nodes, Dir(α·1) over nodes, and is cut
/// accordingly. No example is left over.
///
/// # Source
/// Equal: Hsu et al., arXiv:1909.06335, section 3. Natural: Yurochkin et al., arXiv:1905.12022,
/// section 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dirichlet {
    alpha: f64,
    sizes: Sizes,
    /// Of shape α + 1: see [`Dirichlet::draw`].
    gamma: Gamma<f64>,
}

impl Partitioner for Dirichlet {
    fn name(&self) -> String {
        let sizes = match self.sizes {
            Sizes::Equal => "",
            Sizes::Natural => ",sizes=natural",
        };
        format!("dirichlet:alpha={}{sizes}", self.alpha)
    }

    fn partition(
        &self,
        labels: &Labels<'_>,
        n_nodes: usize,
        rng: &mut Rng,
    ) -> Result<Partition, PartitionError> {
        check_sizes(self, labels, n_nodes)?;
        let mut classes = labels.by_class();
        for examples in &mut classes {
            examples.shuffle(rng);
        }
        let nodes = match self.sizes {
            Sizes::Equal => self.equal(classes, n_nodes, rng),
            Sizes::Natural => self.natural(&classes, n_nodes, rng),
        };
        without_empty_nodes(self, nodes, || {
            "take a larger alpha, fewer nodes, more examples, or equal sizes".into()
        })
    }
}

impl Dirichlet {
    /// With concentration `alpha`, the same for every class.
    ///
    /// # Errors
    /// Unless `alpha` is finite and above zero (by 1e-6 at least).
    pub fn new(alpha: f64, sizes: Sizes) -> Result<Self, PartitionError> {
        let gamma = Gamma::new(alpha + 1.0, 1.0).ok();
        let gamma = gamma.filter(|_| alpha >= MIN_ALPHA && alpha.is_finite());
        match gamma {
            Some(gamma) => Ok(Self {
                alpha,
                sizes,
                gamma,
            }),
            None => Err(PartitionError::Parameter {
                rule: format!("dirichlet:alpha={alpha}"),
                parameter: "alpha",
                expected: format!("a finite number of at least {MIN_ALPHA:e}"),
                got: alpha.to_string(),
            }),
        }
    }

    /// `n` shares that sum to one, ~ Dir(α·1).
    ///
    /// Gamma variables divided by their sum; in logarithms, as for small α all of them would be zero
    /// in f64. `ln Gamma(α) = ln Gamma(α + 1) + ln(U) / α`.
    fn draw(&self, n: usize, rng: &mut Rng) -> Vec<f64> {
        let log = |_| {
            let uniform: f64 = rng.sample(Open01);
            self.gamma.sample(rng).ln() + uniform.ln() / self.alpha
        };
        let mut shares: Vec<f64> = (0..n).map(log).collect();
        let max = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        shares
            .iter_mut()
            .for_each(|share| *share = (*share - max).exp());
        let sum: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= sum);
        shares
    }

    fn equal(&self, mut classes: Vec<Vec<u32>>, n_nodes: usize, rng: &mut Rng) -> Vec<Vec<u32>> {
        let n_examples = classes.iter().map(Vec::len).sum();
        let mut order: Vec<usize> = (0..n_nodes).collect();
        order.shuffle(rng);
        let mut nodes = vec![Vec::new(); n_nodes];
        for node in order {
            let shares = self.draw(classes.len(), rng);
            for _ in even_part(n_examples, n_nodes, node) {
                let class = choose(&shares, &classes, rng);
                nodes[node].extend(classes[class].pop());
            }
        }
        nodes
    }

    fn natural(&self, classes: &[Vec<u32>], n_nodes: usize, rng: &mut Rng) -> Vec<Vec<u32>> {
        let mut nodes = vec![Vec::new(); n_nodes];
        for examples in classes {
            let shares = self.draw(n_nodes, rng);
            let (mut sum, mut start) = (0.0, 0);
            for (node, share) in shares.iter().enumerate() {
                sum += share;
                let end = match node + 1 == n_nodes {
                    true => examples.len(),
                    false => ((sum * examples.len() as f64).round() as usize).min(examples.len()),
                };
                nodes[node].extend_from_slice(&examples[start..end]);
                start = end;
            }
        }
        nodes
    }
}

/// A class that is not exhausted, by `shares`, or where those are all zero by what is left.
fn choose(shares: &[f64], left: &[Vec<u32>], rng: &mut Rng) -> usize {
    let by_share = |class: usize| match left[class].is_empty() {
        true => 0.0,
        false => shares[class],
    };
    let by_rest = |class: usize| left[class].len() as f64;
    let n_classes = shares.len();
    let sum: f64 = (0..n_classes).map(by_share).sum();
    match sum > 0.0 {
        true => weighted(n_classes, by_share, sum, rng),
        false => weighted(n_classes, by_rest, (0..n_classes).map(by_rest).sum(), rng),
    }
}

/// One of `0..n` by weights that add up to `sum`; never one of weight zero.
fn weighted(n: usize, weight: impl Fn(usize) -> f64, sum: f64, rng: &mut Rng) -> usize {
    let mut at = rng.random::<f64>() * sum;
    let mut last = 0;
    for i in (0..n).filter(|&i| weight(i) > 0.0) {
        at -= weight(i);
        last = i;
        if at < 0.0 {
            break;
        }
    }
    // Rounding may leave a little of the last one over.
    last
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::*;
    use crate::seed;

    fn rule(alpha: f64, sizes: Sizes) -> Dirichlet {
        Dirichlet::new(alpha, sizes).expect("in range")
    }

    #[test]
    fn every_example_goes_to_one_node() {
        for alpha in [1e-6, 0.1, 1.0, 1e300] {
            checks::every_example_once(&rule(alpha, Sizes::Equal));
            checks::sound(&rule(alpha, Sizes::Natural));
        }
    }

    // Mean 1/n and variance (n − 1) / (n² (αn + 1)) of a share, also where f64 underflows.
    #[test]
    fn draws_have_the_moments_of_the_distribution() {
        let n = 5;
        for alpha in [1e-3, 0.1, 1.0, 30.0] {
            let rule = rule(alpha, Sizes::Equal);
            let mut rng = seed::rng(3, 0);
            let n_draws = 20_000;
            let (mut sum, mut squares) = (0.0, 0.0);
            for _ in 0..n_draws {
                let shares = rule.draw(n, &mut rng);
                assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                sum += shares[1];
                squares += shares[1] * shares[1];
            }
            let mean = sum / n_draws as f64;
            let variance = squares / n_draws as f64 - mean * mean;
            let n = n as f64;
            let expected = (n - 1.0) / (n * n * (alpha * n + 1.0));
            let deviation = (expected / n_draws as f64).sqrt();
            assert!((mean - 1.0 / n).abs() < 4.0 * deviation, "{alpha}: {mean}");
            assert!(
                (variance / expected - 1.0).abs() < 0.05,
                "{alpha}: {variance}, {expected}"
            );
        }
    }

    // E Σ p² of K classes is (1 + α) / (1 + Kα).
    #[test]
    fn nodes_are_as_mixed_as_alpha_says() {
        let labels: Vec<u32> = (0..50_000).map(|i| i % 10).collect();
        let mixed = |alpha: f64, sizes: Sizes| {
            let partition = checks::partition(&rule(alpha, sizes), &labels, 10, 100, 5);
            let counts = partition.expect("fits").class_counts(&labels, 10);
            let squares = |node| counts.proportions(node).iter().map(|p| p * p).sum::<f64>();
            (0..100).map(squares).sum::<f64>() / 100.0
        };
        for (alpha, expected) in [(0.1, 0.55), (1.0, 2.0 / 11.0), (10.0, 11.0 / 101.0)] {
            let found = mixed(alpha, Sizes::Equal);
            assert!(
                (found / expected - 1.0).abs() < 0.2,
                "{alpha}: {found}, {expected}"
            );
        }
        let alone = mixed(1e-6, Sizes::Equal);
        assert!((0.8..0.97).contains(&alone), "{alone}");
        assert!((mixed(1e9, Sizes::Natural) - 0.1).abs() < 1e-3);
        assert!(mixed(0.3, Sizes::Natural) > mixed(3.0, Sizes::Natural));
    }

    #[test]
    fn sizes_are_equal_or_not() {
        let labels: Vec<u32> = (0..5003).map(|i| i % 10).collect();
        let sizes = |sizes: Sizes| -> Vec<usize> {
            let made = checks::partition(&rule(1.0, sizes), &labels, 10, 20, 5);
            made.expect("fits").nodes.iter().map(Vec::len).collect()
        };
        assert!(
            sizes(Sizes::Equal)
                .iter()
                .all(|size| (250..=251).contains(size))
        );
        let natural = sizes(Sizes::Natural);
        assert_eq!(natural.iter().sum::<usize>(), 5003);
        assert!(natural.iter().max() > natural.iter().min().map(|min| 2 * min).as_ref());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let labels: Vec<u32> = (0..1000).map(|i| i % 10).collect();
        for (alpha, shown) in [
            (0.0, "0"),
            (-1.0, "-1"),
            (f64::NAN, "NaN"),
            (1e-7, "0.0000001"),
        ] {
            let error = Dirichlet::new(alpha, Sizes::Equal).expect_err("out of range");
            let expected = "a finite number of at least 1e-6";
            assert_eq!(
                error.to_string(),
                format!("dirichlet:alpha={shown}: alpha is {shown}, expected {expected}")
            );
        }
        assert!(Dirichlet::new(f64::INFINITY, Sizes::Equal).is_err());
        let made = checks::partition(&rule(0.01, Sizes::Natural), &labels, 10, 100, 1);
        let text = made.expect_err("refused").to_string();
        assert!(
            text.starts_with("dirichlet:alpha=0.01,sizes=natural: node "),
            "{text}"
        );
        assert!(text.ends_with(
            "gets no example: take a larger alpha, fewer nodes, more examples, or equal sizes"
        ));
    }
}
