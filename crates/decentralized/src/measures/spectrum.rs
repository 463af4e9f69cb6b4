//! How fast models come to agree, from the eigenvalues of mixing matrices.

use super::lanczos::{Ends, extremes};
use crate::mixing::MixingMatrix;
use crate::topology::Schedule;

/// How much closer a period brings models to one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spectrum {
    /// `‖W_T ⋯ W_1 − J‖₂`: the share of the distance from the average that a period of T rounds
    /// leaves, at worst. For one symmetric matrix that is |λ₂|, the second largest eigenvalue in
    /// absolute value.
    pub contraction: f64,
    /// `contraction^(1/T)`: the same for a round.
    pub contraction_per_round: f64,
    /// The smallest eigenvalue of the mixing matrix; only if there is one, and symmetric. D² needs
    /// it above −1/3.
    pub smallest_eigenvalue: Option<f64>,
}

impl Spectrum {
    /// Of a period of a schedule. Takes time proportional to links · steps, and steps are few where
    /// the gap is large: tens for expanders, up to n for a ring.
    #[must_use]
    pub fn of(schedule: &Schedule) -> Self {
        let rounds = &schedule.rounds;
        let (contraction, smallest_eigenvalue) = match rounds.as_slice() {
            [mixing] if is_symmetric(mixing) => {
                let (smallest, largest) = symmetric_extremes(mixing);
                (
                    largest.abs().max(smallest.abs()),
                    Some(smallest_of(mixing, smallest)),
                )
            }
            rounds => (norm_of_product(rounds), None),
        };
        let contraction_per_round = contraction.powf(1.0 / rounds.len() as f64);
        Self {
            contraction,
            contraction_per_round,
            smallest_eigenvalue,
        }
    }

    /// The spectral gap, `1 − contraction`: 1 for the complete graph, 0 for one that is not
    /// connected.
    #[must_use]
    pub fn gap(&self) -> f64 {
        1.0 - self.contraction
    }
}

/// The smallest eigenvalue of a symmetric mixing matrix; none if it is not symmetric.
#[must_use]
pub fn smallest_eigenvalue(mixing: &MixingMatrix) -> Option<f64> {
    is_symmetric(mixing).then(|| smallest_of(mixing, symmetric_extremes(mixing).0))
}

/// Whether `W[i, j] = W[j, i]` for all entries, but for rounding.
#[must_use]
pub fn is_symmetric(mixing: &MixingMatrix) -> bool {
    mixing.entries().all(|(row, col, weight)| {
        let (cols, weights) = mixing.row(col);
        let back = cols
            .binary_search(&(row as u32))
            .map_or(0.0, |idx| weights[idx]);
        (weight - back).abs() <= 1e-12
    })
}

/// The smallest and the largest eigenvalue but for that of the constant vector; zeros for a single
/// node.
fn symmetric_extremes(mixing: &MixingMatrix) -> (f64, f64) {
    let found = extremes(mixing.n_nodes(), Ends::Both, |x, y| multiply(mixing, x, y));
    found.unwrap_or((0.0, 0.0))
}

/// A single node has the eigenvalue 1 alone, that of the constant vector.
fn smallest_of(mixing: &MixingMatrix, smallest: f64) -> f64 {
    if mixing.n_nodes() < 2 { 1.0 } else { smallest }
}

/// `‖W_T ⋯ W_1 − J‖₂`: the root of the largest eigenvalue of `PᵀP`, constant vectors apart.
fn norm_of_product(rounds: &[MixingMatrix]) -> f64 {
    let n_nodes = rounds.first().map_or(0, MixingMatrix::n_nodes);
    let mut buffer = vec![0.0; n_nodes];
    let found = extremes(n_nodes, Ends::Largest, |x, y| {
        y.copy_from_slice(x);
        for mixing in rounds {
            multiply(mixing, y, &mut buffer);
            y.copy_from_slice(&buffer);
        }
        for mixing in rounds.iter().rev() {
            multiply_transposed(mixing, y, &mut buffer);
            y.copy_from_slice(&buffer);
        }
    });
    found.map_or(0.0, |(_, largest)| largest.max(0.0).sqrt())
}

/// `y = W·x`.
fn multiply(mixing: &MixingMatrix, x: &[f64], y: &mut [f64]) {
    for (row, y) in y.iter_mut().enumerate() {
        let (cols, weights) = mixing.row(row);
        let products = cols
            .iter()
            .zip(weights)
            .map(|(&col, weight)| weight * x[col as usize]);
        *y = products.sum();
    }
}

/// `y = Wᵀ·x`.
fn multiply_transposed(mixing: &MixingMatrix, x: &[f64], y: &mut [f64]) {
    y.fill(0.0);
    for (row, col, weight) in mixing.entries() {
        y[col] += weight * x[row];
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::topology::testing::{connect, dense, product};
    use crate::topology::{
        BaseGraph, Complete, DCliques, ErdosRenyi, Exponential, Grid, InterClique,
        OnePeerExponential, RandomRegular, Ring, SmallWorld, Topology, TopologyError, Torus,
    };

    fn spectrum(topology: &dyn Topology, n_nodes: usize) -> Result<Spectrum, TopologyError> {
        Ok(Spectrum::of(&connect(topology, n_nodes)?))
    }

    /// The eigenvalues of a symmetric matrix, ascending: Jacobi's rotations.
    fn jacobi(mut a: Vec<f64>) -> Vec<f64> {
        let n = a.len().isqrt();
        for _ in 0..60 {
            for p in 0..n {
                for q in p + 1..n {
                    rotate(&mut a, n, p, q);
                }
            }
        }
        let mut eigenvalues: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
        eigenvalues.sort_by(f64::total_cmp);
        eigenvalues
    }

    /// Makes entry `(p, q)` zero.
    fn rotate(a: &mut [f64], n: usize, p: usize, q: usize) {
        if a[p * n + q].abs() < 1e-300 {
            return;
        }
        let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
        let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
        let c = 1.0 / (t * t + 1.0).sqrt();
        let s = t * c;
        for k in 0..n {
            let (x, y) = (a[k * n + p], a[k * n + q]);
            (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
        }
        for k in 0..n {
            let (x, y) = (a[p * n + k], a[q * n + k]);
            (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
        }
    }

    #[test]
    fn rings_are_as_in_closed_form() -> Result<(), TopologyError> {
        for n_nodes in [3, 4, 5, 16, 17, 100, 1000, 10_000] {
            let eigenvalue = |k: usize| (1.0 + 2.0 * (TAU * k as f64 / n_nodes as f64).cos()) / 3.0;
            let got = spectrum(&Ring, n_nodes)?;
            let smallest = eigenvalue(n_nodes / 2);
            let contraction = eigenvalue(1).max(smallest.abs());
            assert!(
                (got.contraction - contraction).abs() < 1e-10,
                "{n_nodes}: {got:?}"
            );
            assert!((got.smallest_eigenvalue.unwrap_or(9.0) - smallest).abs() < 1e-10);
            assert!((got.gap() - (1.0 - contraction)).abs() < 1e-10);
        }
        Ok(())
    }

    #[test]
    fn tori_and_circulants_are_as_in_closed_form() -> Result<(), TopologyError> {
        let got = spectrum(&Torus, 100)?;
        let contraction = (3.0 + 2.0 * (TAU / 10.0).cos()) / 5.0;
        assert!((got.contraction - contraction).abs() < 1e-10);
        assert!((got.smallest_eigenvalue.unwrap_or(9.0) + 3.0 / 5.0).abs() < 1e-10);
        for n_nodes in [5, 16, 17, 100] {
            let n_links = connect(&Exponential, n_nodes)?.mixing(0).row(0).0.len();
            let modulus = |k: usize| {
                let offsets = (0..n_links - 1).map(|bit| (1 << bit) as f64).chain([0.0]);
                let angles = offsets.map(|offset| TAU * k as f64 * offset / n_nodes as f64);
                let (re, im) = angles.fold((0.0, 0.0), |sum, x| (sum.0 + x.cos(), sum.1 + x.sin()));
                f64::hypot(re, im) / n_links as f64
            };
            let expect = (1..n_nodes).map(modulus).fold(0.0, f64::max);
            let got = spectrum(&Exponential, n_nodes)?;
            assert!(
                (got.contraction - expect).abs() < 1e-7,
                "{n_nodes}: {got:?}, {expect}"
            );
            assert_eq!(got.smallest_eigenvalue, None);
        }
        Ok(())
    }

    #[test]
    fn any_graph_is_as_a_dense_solver_says() -> Result<(), TopologyError> {
        let d_cliques = DCliques {
            size: 5,
            inter: InterClique::Fractal,
            steps: Some(0),
            removed_edges: 1,
        };
        let random = RandomRegular { degree: 4 };
        let sparse = ErdosRenyi { p: 0.02 };
        let topologies: [&dyn Topology; 6] = [
            &Grid,
            &random,
            &ErdosRenyi { p: 0.2 },
            &sparse,
            &SmallWorld { k: 2 },
            &d_cliques,
        ];
        for topology in topologies {
            for n_nodes in [5, 16, 41] {
                let schedule = connect(topology, n_nodes)?;
                let eigenvalues = jacobi(dense(schedule.mixing(0)));
                // The largest is that of the constant vector.
                let (smallest, second) = (eigenvalues[0], eigenvalues[n_nodes - 2]);
                let got = Spectrum::of(&schedule);
                let contraction = second.max(smallest.abs());
                assert!(
                    (got.contraction - contraction).abs() < 1e-10,
                    "{topology:?} {n_nodes}"
                );
                assert!((got.smallest_eigenvalue.unwrap_or(9.0) - smallest).abs() < 1e-10);
            }
        }
        Ok(())
    }

    #[test]
    fn periods_contract_as_their_product() -> Result<(), TopologyError> {
        let n_nodes = 17;
        let schedule = connect(&OnePeerExponential, n_nodes)?;
        let p = product(&schedule);
        let entry = |i: usize| {
            let (row, col) = (i / n_nodes, i % n_nodes);
            let products = (0..n_nodes).map(|k| p[k * n_nodes + row] * p[k * n_nodes + col]);
            products.sum::<f64>()
        };
        let gram = (0..n_nodes * n_nodes).map(entry).collect();
        let expect = jacobi(gram)[n_nodes - 2].sqrt();
        let got = Spectrum::of(&schedule);
        assert!((got.contraction - expect).abs() < 1e-10);
        assert!((got.contraction_per_round.powi(5) - expect).abs() < 1e-10);
        for exact in [
            spectrum(&BaseGraph { k: 2 }, 100)?,
            spectrum(&OnePeerExponential, 64)?,
        ] {
            assert!(exact.contraction < 1e-12, "{exact:?}");
        }
        Ok(())
    }

    #[test]
    fn extremes_of_connectedness() -> Result<(), TopologyError> {
        for n_nodes in [2, 3, 100] {
            let got = spectrum(&Complete, n_nodes)?;
            assert!(got.contraction.abs() < 1e-12);
            assert!(got.smallest_eigenvalue.unwrap_or(9.0).abs() < 1e-12);
        }
        let alone = spectrum(&Complete, 1)?;
        assert_eq!((alone.gap(), alone.smallest_eigenvalue), (1.0, Some(1.0)));
        let pairs = spectrum(&RandomRegular { degree: 1 }, 16)?;
        assert!(pairs.gap().abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn random_regular_graphs_are_expanders() -> Result<(), TopologyError> {
        // Friedman: nearly all have λ₂ close to 2·√(d − 1), here of d + 1 with the diagonal.
        let got = spectrum(&RandomRegular { degree: 10 }, 2000)?;
        let expect = (1.0 + 2.0 * 9f64.sqrt()) / 11.0;
        assert!(
            (got.contraction / expect - 1.0).abs() < 0.03,
            "{got:?}, {expect}"
        );
        Ok(())
    }
}
