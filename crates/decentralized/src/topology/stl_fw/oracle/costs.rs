//! The costs of the assignment problem that a Frank–Wolfe iteration solves.

use super::super::iterate::{Iterate, weight_of};
use super::super::objective::Proportions;

/// `cost[i, j] = left[i] · right[j] + λ W[i, j]`: the gradient of the objective without its factor
/// `2/n` and its constant `−λ/n`, neither of which matters to the best permutation. Of rank
/// `rank` plus one entry for each entry of W: `[n_nodes, n_nodes]` is never stored.
pub(crate) struct Costs<'a> {
    pub(crate) rank: usize,
    /// `[n_nodes, rank]`
    pub(crate) left: Vec<f64>,
    /// `[n_nodes, rank]`
    pub(crate) right: Vec<f64>,
    pub(crate) lambda: f64,
    /// The entries of each row of W.
    pub(crate) weights: &'a [Vec<(u32, f64)>],
}

impl<'a> Costs<'a> {
    /// Of a directed graph: `left[i] = WΠ_i − Π̄`, `right[j] = Π_j`.
    pub(crate) fn directed(iterate: &'a Iterate, pi: &Proportions, lambda: f64) -> Self {
        Self {
            rank: pi.n_classes,
            left: centred(iterate, pi).collect(),
            right: pi.rows.clone(),
            lambda,
            weights: &iterate.rows,
        }
    }

    /// Of an undirected one. `⟨∇g, P⟩ = ⟨(∇g + ∇gᵀ)/2, P⟩` for a symmetric P; the rank doubles:
    /// `left[i] = (a_i, Π_i)/2` and `right[j] = (Π_j, a_j)`, where `a_i = WΠ_i − Π̄`.
    pub(crate) fn undirected(iterate: &'a Iterate, pi: &Proportions, lambda: f64) -> Self {
        let own: Vec<f64> = centred(iterate, pi).collect();
        let rank = 2 * pi.n_classes;
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for (own, shares) in own.chunks(pi.n_classes).zip(pi.rows.chunks(pi.n_classes)) {
            left.extend(own.iter().chain(shares).map(|x| 0.5 * x));
            right.extend(shares.iter().chain(own));
        }
        let weights = &iterate.rows;
        Self {
            rank,
            left,
            right,
            lambda,
            weights,
        }
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.weights.len()
    }

    pub(crate) fn left(&self, row: usize) -> &[f64] {
        &self.left[row * self.rank..][..self.rank]
    }

    pub(crate) fn right(&self, col: usize) -> &[f64] {
        &self.right[col * self.rank..][..self.rank]
    }

    pub(crate) fn cost(&self, row: usize, col: usize) -> f64 {
        let weights = self.weights.get(row).map_or(&[][..], Vec::as_slice);
        dot(self.left(row), self.right(col)) + self.lambda * weight_of(weights, col as u32)
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `WΠ − JΠ`, row by row.
fn centred<'a>(iterate: &'a Iterate, pi: &'a Proportions) -> impl Iterator<Item = f64> + 'a {
    let rows = iterate.mixed.chunks_exact(pi.n_classes);
    rows.flat_map(|row| row.iter().zip(&pi.mean).map(|(share, mean)| share - mean))
}
