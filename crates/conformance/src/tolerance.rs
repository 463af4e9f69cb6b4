//! Expected numbers, and how far from them a device may be.
//!
//! Every expected number carries a spread: about one standard deviation of what rounding may have
//! done to it. A number that is stored in a format with unit roundoff `u` is off by at most `u · |x|`,
//! and by `u · |x| / √3` on average; a sum of products in f32 by a few of its roundings times the sum
//! of absolute products. Rounding errors are close to independent, so spreads add as squares. A
//! bound that adds them up as they are would be wrong by more than it allows for as soon as thousands
//! of numbers meet.
//!
//! A result may be off by [`SPREADS`] of its spread, which independent errors do not reach, and by
//! the rounding of the result itself, which needs no statistics. Devices may keep more than their dtype
//! asks for (the CPU device keeps activations in f32); none may keep less.

use moeshard_tensor::dtype::DType;

use crate::suite::{Failure, Outcome};

/// Spreads that a result may be off by. Of millions of independent errors none is larger.
const SPREADS: f64 = 6.0;

/// Spread of a sum of products in f32 as a share of the sum of absolute products: four roundings.
/// The order of summation is the device's own, and tensor cores cut off where others round.
pub(crate) const SUM: f64 = 4.0 * F32;

/// Spread of `exp`, `tanh` or `erf` in f32, relative to the larger of one and the argument: a device
/// computes them by polynomials of its own. Two units in the last place.
pub(crate) const FUNCTION: f64 = 4.0 * F32;

/// Half a unit in the last place of 1 in f32.
pub(crate) const F32: f64 = 1.0 / (1 << 24) as f64;

/// Below this nothing is told apart: inputs are near one.
const FLOOR: f64 = 1e-7;

/// Half a unit in the last place of 1.
pub(crate) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => F32,
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
    }
}

/// A number and what rounding may have done to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    /// About one standard deviation of its error.
    pub(crate) spread: f64,
}

impl Estimate {
    pub(crate) fn exact(value: impl Into<f64>) -> Self {
        Self {
            value: value.into(),
            spread: 0.0,
        }
    }

    pub(crate) fn new(value: f64, variance: f64) -> Self {
        Self {
            value,
            spread: variance.sqrt(),
        }
    }

    /// As it is read back after it was stored in a format.
    pub(crate) fn stored(self, dtype: DType) -> Self {
        let rounding = unit(dtype) * self.value.abs();
        Self::new(self.value, self.spread.powi(2) + rounding.powi(2) / 3.0)
    }

    /// The largest error that a device may make.
    fn allowed(&self, dtype: DType) -> f64 {
        FLOOR + SPREADS * self.spread + unit(dtype) * self.value.abs()
    }
}

/// Expected rows `[n_rows, n_cols]`.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) n_cols: usize,
    pub(crate) data: Vec<Estimate>,
}

impl Rows {
    pub(crate) fn exact(n_cols: usize, values: &[f32]) -> Self {
        Self {
            n_cols,
            data: values.iter().map(|&x| Estimate::exact(x)).collect(),
        }
    }

    /// From `n_rows` rows that a function makes.
    pub(crate) fn from_fn(
        n_rows: usize,
        n_cols: usize,
        row: impl FnMut(usize) -> Vec<Estimate>,
    ) -> Self {
        Self {
            n_cols,
            data: (0..n_rows).flat_map(row).collect(),
        }
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.data.len() / self.n_cols.max(1)
    }

    pub(crate) fn row(&self, row: usize) -> &[Estimate] {
        &self.data[row * self.n_cols..][..self.n_cols]
    }

    pub(crate) fn map(mut self, f: impl Fn(Estimate) -> Estimate) -> Self {
        self.data.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    pub(crate) fn stored(self, dtype: DType) -> Self {
        self.map(|x| x.stored(dtype))
    }
}

/// Compares `n_rows` rows with what is expected of them. If fewer are expected, they come again and
/// again, as those of [`Inputs::rows`](crate::inputs::Inputs::rows).
pub(crate) fn compare(dtype: DType, found: &[f32], n_rows: usize, expected: &Rows) -> Outcome {
    let n_cols = expected.n_cols;
    let is_empty = expected.data.is_empty();
    if found.len() != n_rows * n_cols || found.is_empty() != is_empty {
        let (n, found) = (n_rows * n_cols, found.len());
        return Err(Failure(format!("expected {n} numbers, found {found}")));
    }
    let mut worst = 0.0_f64;
    let mut at = 0;
    for (i, &x) in found.iter().enumerate() {
        let expected = &expected.data[i % expected.data.len()];
        let share = (f64::from(x) - expected.value).abs() / expected.allowed(dtype);
        if share > worst || share.is_nan() {
            (worst, at) = (share, i);
        }
        if share.is_nan() {
            break;
        }
    }
    if worst <= 1.0 {
        return Ok(worst);
    }
    let estimate = &expected.data[at % expected.data.len()];
    Err(Failure(format!(
        "row {} column {}: expected {:e} ± {:.1e}, found {:e}",
        at / n_cols,
        at % n_cols,
        estimate.value,
        estimate.allowed(dtype),
        found[at]
    )))
}

/// Fails unless both have the same bits.
pub(crate) fn equal_bits(what: &str, found: &[f32], expected: &[f32]) -> Result<(), Failure> {
    if found.len() != expected.len() {
        let (n, found) = (expected.len(), found.len());
        return Err(Failure(format!(
            "{what}: expected {n} numbers, found {found}"
        )));
    }
    let mut pairs = found.iter().zip(expected);
    match pairs.position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(at) => Err(Failure(format!(
            "{what}: expected the same bits, found {:e} in place of {:e} at element {at}",
            found[at], expected[at]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_allowed_and_more_is_not() {
        let expected = Rows::exact(2, &[1.0, -3.0]);
        let off = |share: f64| (-3.0 * (1.0 + share / 256.0)) as f32;
        for (found, is_right) in [
            (off(0.9), true),
            (off(1.1), false),
            (f32::NAN, false),
            (f32::INFINITY, false),
        ] {
            let outcome = compare(DType::BF16, &[1.0, found], 1, &expected);
            assert_eq!(outcome.is_ok(), is_right, "{found}");
        }
        let Failure(why) =
            compare(DType::F32, &[1.0, -3.0, 1.0, -2.0], 2, &expected).expect_err("the last");
        assert!(
            why.contains("row 1 column 1: expected -3e0") && why.contains("found -2e0"),
            "{why}"
        );
        assert!(compare(DType::F32, &[1.0], 1, &expected).is_err());
        let nan_first = [f32::NAN, 7.0];
        let Failure(why) = compare(DType::F32, &nan_first, 1, &expected).expect_err("NaN");
        assert!(why.contains("column 0"), "{why}");
    }

    #[test]
    fn bits_differ_where_numbers_are_equal() {
        assert!(equal_bits("x", &[0.0], &[0.0]).is_ok());
        assert!(equal_bits("x", &[0.0], &[-0.0]).is_err());
        assert!(equal_bits("x", &[0.0], &[0.0, 0.0]).is_err());
    }
}
