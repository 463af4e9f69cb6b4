//! The extreme eigenvalues of a symmetric matrix that is known by its products with vectors.
//!
//! # Source
//! Lanczos, 1950. Without reorthogonalisation: rounding then repeats eigenvalues but moves none
//! (Paige, 1980), and we want the extremes only. Keeping all vectors would take n² memory on a
//! ring, where convergence takes as many steps as there are nodes.

use rand::RngExt;

use crate::seed;

/// Steps after which we stop in any case; a ring of 20,000 nodes needs as many.
const MAX_STEPS: usize = 50_000;

/// Relative to the larger extreme: changes below it are taken for convergence.
const TOLERANCE: f64 = 1e-13;

/// Products of at most this length are rounding of vectors of length one.
const NOTHING: f64 = 1e-14;

/// The ends of the spectrum that are asked for; the other one may not have converged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    Both,
    Largest,
}

/// The smallest and the largest eigenvalue of a symmetric matrix on the vectors whose entries sum
/// to zero, which it must map to such vectors, none longer than it was. `apply(x, y)` sets `y` to
/// the product with `x`. None if `n < 2`: there are no such vectors.
pub(super) fn extremes(
    n: usize,
    ends: Ends,
    mut apply: impl FnMut(&[f64], &mut [f64]),
) -> Option<(f64, f64)> {
    if n < 2 {
        return None;
    }
    let mut step = Step::new(n);
    let mut tridiagonal = Tridiagonal::default();
    let mut last = (f64::NAN, f64::NAN);
    let mut n_calm = 0;
    let mut next_check = 8;
    for n_steps in 1..=MAX_STEPS {
        let is_last = !step.advance(&mut tridiagonal, &mut apply) || n_steps == MAX_STEPS;
        if !is_last && n_steps < next_check {
            continue;
        }
        next_check = n_steps + n_steps / 4 + 1;
        let now = tridiagonal.extremes();
        let small = f64::max(now.0.abs(), now.1.abs()) * TOLERANCE;
        let is_calm = (now.1 - last.1).abs() <= small
            && (ends == Ends::Largest || (now.0 - last.0).abs() <= small);
        n_calm = if is_calm { n_calm + 1 } else { 0 };
        last = now;
        if is_last || n_calm == 2 {
            break;
        }
    }
    Some(last)
}

/// The vectors of the iteration.
struct Step {
    /// Of the step before, and of this one: unit vectors.
    before: Vec<f64>,
    now: Vec<f64>,
    product: Vec<f64>,
}

impl Step {
    /// Starts with a vector that has some part of every eigenvector: random, and always the same.
    fn new(n: usize) -> Self {
        let mut rng = seed::rng(0, 0);
        let mut now: Vec<f64> = (0..n).map(|_| rng.random::<f64>() - 0.5).collect();
        centre(&mut now);
        let norm = dot(&now, &now).sqrt();
        now.iter_mut().for_each(|x| *x /= norm);
        Self {
            before: vec![0.0; n],
            now,
            product: vec![0.0; n],
        }
    }

    /// Adds a row to `tridiagonal`; false if the vectors so far span all that the matrix makes of
    /// them.
    fn advance(
        &mut self,
        tridiagonal: &mut Tridiagonal,
        apply: &mut impl FnMut(&[f64], &mut [f64]),
    ) -> bool {
        apply(&self.now, &mut self.product);
        let beta = tridiagonal.off_diagonal.last().copied().unwrap_or(0.0);
        let alpha = dot(&self.now, &self.product);
        let others = self.now.iter().zip(&self.before);
        for (x, (now, before)) in self.product.iter_mut().zip(others) {
            *x -= alpha * now + beta * before;
        }
        // Rounding brings some of the constant vector back, and its eigenvalue with it.
        centre(&mut self.product);
        tridiagonal.diagonal.push(alpha);
        let norm = dot(&self.product, &self.product).sqrt();
        if norm <= NOTHING {
            return false;
        }
        tridiagonal.off_diagonal.push(norm);
        std::mem::swap(&mut self.before, &mut self.now);
        let next = self.now.iter_mut().zip(&self.product);
        next.for_each(|(to, x)| *to = x / norm);
        true
    }
}

fn centre(x: &mut [f64]) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter_mut().for_each(|x| *x -= mean);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A symmetric tridiagonal matrix.
#[derive(Default)]
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// Entry `i` is beside diagonal entries `i` and `i + 1`; the last one may be beyond the end.
    off_diagonal: Vec<f64>,
}

impl Tridiagonal {
    /// The smallest and the largest eigenvalue, by bisection.
    fn extremes(&self) -> (f64, f64) {
        let widest = self.off_diagonal.iter().copied().fold(0.0, f64::max);
        let bound = self
            .diagonal
            .iter()
            .fold(0.0, |most, x| f64::max(most, x.abs()))
            + 2.0 * widest;
        let n = self.diagonal.len();
        let smallest = bisect(-bound, bound, |x| self.n_below(x) >= 1);
        let largest = bisect(-bound, bound, |x| self.n_below(x) >= n);
        (smallest, largest)
    }

    /// How many eigenvalues are less than `x`: the negative pivots of the matrix less `x`
    /// (Sylvester).
    fn n_below(&self, x: f64) -> usize {
        let mut n_below = 0;
        let mut pivot = 1.0;
        for (i, alpha) in self.diagonal.iter().enumerate() {
            let beta = if i == 0 {
                0.0
            } else {
                self.off_diagonal[i - 1]
            };
            pivot = alpha - x - beta * beta / pivot;
            if pivot == 0.0 {
                pivot = -f64::MIN_POSITIVE;
            }
            n_below += usize::from(pivot < 0.0);
        }
        n_below
    }
}

/// Where `is_above` turns true between `low` and `high`, to the last bit.
fn bisect(mut low: f64, mut high: f64, is_above: impl Fn(f64) -> bool) -> f64 {
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return middle;
        }
        if is_above(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
}
