//! The linear oracle of Frank–Wolfe: the permutation at the least cost.
//!
//! In reading order:
//! - `costs`: what a pair of nodes costs.
//! - `dense`: exactly, on all pairs.
//! - `implicit`: without storing all pairs, by way of `grid`, `transport`, `matching` and
//!   `completion`, or of `auction`.

mod auction;
mod completion;
mod costs;
mod dense;
mod grid;
mod implicit;
mod matching;
mod transport;

pub(super) use costs::Costs;

use crate::seed::Rng;

/// How the assignment problem of each iteration is solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// Exactly, on the stored matrix of all pairs of nodes, in O(n³): the reference, for up to some
    /// 2,000 nodes.
    Dense,
    /// Without storing all pairs: exactly while nodes fall into groups of the same shares of
    /// classes, else within 10⁻⁴ of what the best permutation gains over a mean one.
    Implicit,
}

impl Oracle {
    pub(super) fn assign(self, costs: &Costs<'_>, rng: &mut Rng) -> Vec<u32> {
        match self {
            Self::Dense => dense::assign(costs, rng),
            Self::Implicit => implicit::assign(costs, rng),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::iterate::Iterate;
    use super::super::objective::Proportions;
    use super::*;
    use crate::classes::ClassCounts;
    use crate::seed::rng;
    use rand::RngExt;

    const N_ITERATIONS: usize = 8;

    /// `n_kinds` different nodes, each some `n_nodes / n_kinds` times.
    fn kinds(n_nodes: usize, n_kinds: usize, seed: u64) -> Proportions {
        let mut rng = rng(seed, 0);
        let n_classes = 6;
        let kinds: Vec<Vec<u32>> = (0..n_kinds)
            .map(|_| {
                (0..n_classes)
                    .map(|_| rng.random_range(0u32..9).pow(2))
                    .collect()
            })
            .collect();
        let counts = (0..n_nodes).flat_map(|_| kinds[rng.random_range(0..n_kinds)].clone());
        Proportions::of(&ClassCounts::new(n_classes, counts.collect()))
    }

    fn total(costs: &Costs<'_>, to: &[u32]) -> f64 {
        let mut is_taken = vec![false; to.len()];
        let cost = |(row, &col): (usize, &u32)| {
            let is_twice = std::mem::replace(&mut is_taken[col as usize], true);
            assert!(!is_twice, "column {col} is taken twice");
            costs.cost(row, col as usize)
        };
        to.iter().enumerate().map(cost).sum()
    }

    /// Runs Frank–Wolfe on the implicit oracle; at every iterate its permutation may cost more than
    /// the dense oracle's by `tolerance` of what that gains over the mean of all.
    fn check(pi: &Proportions, lambda: f64, is_undirected: bool, tolerance: f64) {
        let mut iterate = Iterate::identity(pi);
        let mut rng = rng(5, 0);
        for l in 0..N_ITERATIONS {
            let costs = match is_undirected {
                false => Costs::directed(&iterate, pi, lambda),
                true => Costs::undirected(&iterate, pi, lambda),
            };
            let to = Oracle::Implicit.assign(&costs, &mut rng);
            let found = total(&costs, &to);
            let n_nodes = to.len();
            let best = total(&costs, &Oracle::Dense.assign(&costs, &mut rng));
            let pairs = (0..n_nodes * n_nodes).map(|at| costs.cost(at / n_nodes, at % n_nodes));
            let gain = pairs.sum::<f64>() / n_nodes as f64 - best;
            let bound = best + tolerance * gain + 1e-9;
            assert!(found <= bound, "iteration {l}: {found} > {bound}");
            assert!(
                found >= best - 1e-9,
                "iteration {l}: {found} beats the best {best}"
            );
            // Symmetric iterates are what undirected costs are for.
            let to = match is_undirected {
                false => to,
                true => super::super::pairing::pair(&costs, &to),
            };
            let gamma = iterate.exact_step(&to, pi, lambda);
            iterate.step(&to, pi, gamma);
        }
    }

    #[test]
    fn groups_are_solved_exactly() {
        for (n_nodes, n_kinds) in [(12, 2), (40, 20), (60, 4), (120, 40), (150, 70)] {
            // From no penalty on neighbours to hardly anything but that.
            for lambda in [0.0, 0.001, 0.1, 10.0] {
                check(&kinds(n_nodes, n_kinds, 1), lambda, false, 0.0);
            }
        }
    }

    #[test]
    fn distinct_nodes_are_solved_to_the_tolerance() {
        for n_nodes in [1, 2, 3, 10, 70, 200] {
            for lambda in [0.0, 0.1, 10.0] {
                check(&kinds(n_nodes, 10_000, 1), lambda, false, 1.1e-4);
            }
        }
    }

    #[test]
    fn undirected_costs_are_solved_to_the_tolerance() {
        for (n_nodes, n_kinds) in [(40, 2), (120, 12), (120, 10_000)] {
            check(&kinds(n_nodes, n_kinds, 1), 0.1, true, 1.1e-4);
        }
    }
}
