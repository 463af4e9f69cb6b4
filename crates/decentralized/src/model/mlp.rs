//! Two layers with a ReLU in between.

use moeshard_tensor::linalg::relu;

use super::linear::{backward, forward, init_layer, layer_params};
use super::loss::cross_entropy_gradient;
use super::{Batch, Mat, Model, Scratch};
use crate::seed::Rng;

/// `logits = W₂ · max(W₁ · x + b₁, 0) + b₂`; parameters are W₁, b₁, W₂, b₂.
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    n_features: usize,
    n_hidden: usize,
    n_classes: usize,
}

impl Mlp {
    /// A model with one hidden layer.
    #[must_use]
    pub fn new(n_features: usize, n_hidden: usize, n_classes: usize) -> Self {
        Self {
            n_features,
            n_hidden,
            n_classes,
        }
    }

    /// Parameters of the first layer.
    fn n_first(&self) -> usize {
        layer_params(self.n_features, self.n_hidden)
    }

    /// `hidden = max(W₁ · x + b₁, 0)`
    fn hidden(&self, params: &[f32], x: &[f32], hidden: &mut [f32], scratch: &mut Scratch) {
        let first = &params[..self.n_first()];
        forward(first, x, self.n_features, hidden, scratch);
        relu(hidden);
    }
}

impl Model for Mlp {
    fn n_params(&self) -> usize {
        self.n_first() + layer_params(self.n_hidden, self.n_classes)
    }

    fn n_features(&self) -> usize {
        self.n_features
    }

    fn n_classes(&self) -> usize {
        self.n_classes
    }

    fn starts_alike(&self) -> bool {
        true
    }

    fn init(&self, rng: &mut Rng, params: &mut [f32]) {
        let (first, second) = params.split_at_mut(self.n_first());
        init_layer(rng, self.n_features, first);
        init_layer(rng, self.n_hidden, second);
    }

    fn logits(&self, params: &[f32], features: &[f32], logits: &mut [f32], scratch: &mut Scratch) {
        let n = logits.len() / self.n_classes;
        let mut buffer = std::mem::take(&mut scratch.values[0]);
        let hidden = buffer.room(n * self.n_hidden);
        self.hidden(params, features, hidden, scratch);
        let second = &params[self.n_first()..];
        forward(second, hidden, self.n_hidden, logits, scratch);
        scratch.values[0] = buffer;
    }

    fn gradient(
        &self,
        params: &[f32],
        batch: Batch<'_>,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) -> f32 {
        let n = batch.labels.len();
        let mut buffers = std::mem::take(&mut scratch.values);
        let [hidden, d_hidden, d, _] = &mut buffers;
        let hidden = hidden.room(n * self.n_hidden);
        let d_hidden = d_hidden.room(n * self.n_hidden);
        let d = d.room(n * self.n_classes);

        self.hidden(params, batch.features, hidden, scratch);
        let second = &params[self.n_first()..];
        forward(second, hidden, self.n_hidden, d, scratch);
        let loss = cross_entropy_gradient(d, batch.labels);

        let (g_first, g_second) = gradient.split_at_mut(self.n_first());
        backward(d, hidden, self.n_hidden, g_second, scratch);
        // [n, n_classes] · [n_classes, n_hidden]
        let w = &second[..self.n_classes * self.n_hidden];
        let w = Mat::new(w, self.n_classes, self.n_hidden);
        scratch.product(Mat::new(d, n, self.n_classes), w, 0.0, d_hidden);
        for (d, &h) in d_hidden.iter_mut().zip(&*hidden) {
            *d = if h > 0.0 { *d } else { 0.0 };
        }
        backward(d_hidden, batch.features, self.n_features, g_first, scratch);
        scratch.values = buffers;
        loss
    }
}
