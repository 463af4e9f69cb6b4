//! Normalisation, row by row.

use super::isa::per_isa;
use crate::device::NormKind;

per_isa! {
    /// Normalises one row; statistics in f32 over sixteen partial sums.
    pub(crate) fn norm_row(
        kind: NormKind,
        eps: f32,
        row: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let n = row.len() as f32;
        let mean = match kind {
            NormKind::Layer => sum(row, |x| x) / n,
            NormKind::Rms => 0.0,
        };
        let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
        let factor = 1.0 / (variance + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(row).zip(weight) {
            *out = (x - mean) * factor * w;
        }
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
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
