//! Softmax regression.

use rand::RngExt;

use super::loss::cross_entropy_gradient;
use super::{Batch, Mat, Model, Scratch};
use crate::seed::Rng;

/// `logits = x · Wᵀ + b`; parameters are W `[n_classes, n_features]`, then b `[n_classes]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    n_features: usize,
    n_classes: usize,
}

impl Linear {
    /// A model of that many inputs and outputs.
    #[must_use]
    pub fn new(n_features: usize, n_classes: usize) -> Self {
        Self {
            n_features,
            n_classes,
        }
    }
}

impl Model for Linear {
    fn n_params(&self) -> usize {
        layer_params(self.n_features, self.n_classes)
    }

    fn n_features(&self) -> usize {
        self.n_features
    }

    fn n_classes(&self) -> usize {
        self.n_classes
    }

    fn starts_alike(&self) -> bool {
        false
    }

    fn init(&self, rng: &mut Rng, params: &mut [f32]) {
        init_layer(rng, self.n_features, params);
    }

    fn logits(&self, params: &[f32], features: &[f32], logits: &mut [f32], scratch: &mut Scratch) {
        forward(params, features, self.n_features, logits, scratch);
    }

    fn gradient(
        &self,
        params: &[f32],
        batch: Batch<'_>,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) -> f32 {
        let mut logits = std::mem::take(&mut scratch.values[0]);
        let d = logits.room(batch.labels.len() * self.n_classes);
        forward(params, batch.features, self.n_features, d, scratch);
        let loss = cross_entropy_gradient(d, batch.labels);
        backward(d, batch.features, self.n_features, gradient, scratch);
        scratch.values[0] = logits;
        loss
    }
}

/// Parameters of a layer with bias.
pub(super) fn layer_params(n_in: usize, n_out: usize) -> usize {
    n_out * (n_in + 1)
}

/// Uniform within ± 1/√n_in, weights and biases.
pub(super) fn init_layer(rng: &mut Rng, n_in: usize, params: &mut [f32]) {
    let bound = 1.0 / (n_in as f32).sqrt();
    params.fill_with(|| rng.random_range(-bound..=bound));
}

/// `out = x · Wᵀ + b`
///
/// # Shapes
/// - `params`: W `[n_out, n_in]`, then b `[n_out]`
/// - `x`: `[n, n_in]`
/// - `out`: `[n, n_out]`
pub(super) fn forward(
    params: &[f32],
    x: &[f32],
    n_in: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let n_out = params.len() / (n_in + 1);
    let (w, b) = params.split_at(n_in * n_out);
    for row in out.chunks_exact_mut(n_out) {
        row.copy_from_slice(b);
    }
    let (x, w) = (
        Mat::new(x, out.len() / n_out, n_in),
        Mat::new(w, n_out, n_in),
    );
    scratch.product(x, w.t(), 1.0, out);
}

/// The gradient of a layer's parameters, from that of its outputs.
///
/// # Shapes
/// As [`forward`]'s; `d`: `[n, n_out]`
pub(super) fn backward(
    d: &[f32],
    x: &[f32],
    n_in: usize,
    gradient: &mut [f32],
    scratch: &mut Scratch,
) {
    let n_out = gradient.len() / (n_in + 1);
    let n = d.len() / n_out;
    let (gw, gb) = gradient.split_at_mut(n_in * n_out);
    scratch.product(Mat::new(d, n, n_out).t(), Mat::new(x, n, n_in), 0.0, gw);
    gb.fill(0.0);
    for row in d.chunks_exact(n_out) {
        gb.iter_mut().zip(row).for_each(|(g, d)| *g += d);
    }
}
