//! Normalisation, row by row.

use super::isa::per_isa;
use crate::device::NormKind;

per_isa! {
    /// Normalises one row in place; statistics in f32 over sixteen partial sums.
    pub(crate) fn norm_row(
        kind: NormKind,
        eps: f32,
        row: &mut [f32],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) {
        let n = row.len() as f32;
        if kind == NormKind::Layer {
            let mean = sum(row, |x| x) / n;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        let variance = sum(row, |x| x * x) / n;
        let factor = 1.0 / (variance + eps).sqrt();
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= factor * w);
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }
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
