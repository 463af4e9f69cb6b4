//! Normalisation, row by row.

use super::isa::per_isa;
use crate::device::{Norm, NormKind};

per_isa! {
    /// Normalises one row, in place or `from` another one; statistics in f32 over sixteen partial
    /// sums.
    pub(crate) fn norm_row(norm: &Norm<Vec<f32>>, from: Option<&[f32]>, row: &mut [f32]) {
        let (mean, factor) = statistics(norm, from.unwrap_or(row));
        let scaled = |x: f32, w: f32| (x - mean) * factor * w;
        let weighted = row.iter_mut().zip(&norm.weight);
        match from {
            Some(from) => weighted.zip(from).for_each(|((y, w), x)| *y = scaled(*x, *w)),
            None => weighted.for_each(|(y, w)| *y = scaled(*y, *w)),
        }
        if let Some(bias) = &norm.bias {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }
}

/// What is subtracted from a row, and its factor then.
#[inline(always)]
fn statistics(norm: &Norm<Vec<f32>>, row: &[f32]) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = match norm.kind {
        NormKind::Layer => sum(row, |x| x) / n,
        NormKind::Rms => 0.0,
    };
    let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + norm.eps).sqrt())
}

/// `Σ f(x)` over sixteen partial sums, which keeps the error small and the loop vectorisable.
#[inline(always)]
pub(crate) fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = xs.as_chunks::<16>();
    let mut partial = [0.0_f32; 16];
    for block in blocks {
        for (sum, &x) in partial.iter_mut().zip(block) {
            *sum += f(x);
        }
    }
    for (sum, &x) in partial.iter_mut().zip(rest) {
        *sum += f(x);
    }
    partial.iter().sum()
}
