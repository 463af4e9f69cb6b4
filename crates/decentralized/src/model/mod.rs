//! What nodes train: classifiers whose parameters are one flat vector.

use std::fmt::Debug;

use moeshard_tensor::linalg::{self, Gemm, MatMut, MatRef};

use crate::seed::Rng;

mod gn_lenet;
mod linear;
mod loss;
mod mlp;

pub use gn_lenet::GnLeNet;
pub use linear::Linear;
pub use mlp::Mlp;

/// Some labelled examples.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[n_examples, n_features]`
    pub features: &'a [f32],
    /// `[n_examples]`
    pub labels: &'a [u32],
}

/// Memory to compute in, used again from batch to batch. One thread uses it at a time.
#[derive(Debug, Default)]
pub struct Scratch {
    gemm: Gemm,
    /// One for each intermediate result of a model.
    values: [linalg::Scratch; 4],
    lenet: gn_lenet::Buffers,
}

/// A matrix of a model, row by row.
#[derive(Clone, Copy)]
struct Mat<'a>(MatRef<'a>);

impl<'a> Mat<'a> {
    fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> Self {
        let view = MatRef::new(data, n_rows, n_cols);
        Self(view.expect("a model knows the shapes of its matrices"))
    }

    fn t(self) -> Self {
        Self(self.0.t())
    }
}

impl Scratch {
    /// `c = a · b + beta · c`, `c` row by row.
    fn product(&mut self, a: Mat<'_>, b: Mat<'_>, beta: f32, c: &mut [f32]) {
        let c = MatMut::new(c, a.0.n_rows(), b.0.n_cols());
        let product = c.and_then(|c| self.gemm.run(1.0, a.0, b.0, beta, c));
        product.expect("a model knows the shapes of its matrices");
    }
}

/// A classifier with softmax and cross-entropy on top.
///
/// A model has no state of its own: thousands of nodes share it, each with its parameters.
pub trait Model: Debug + Send + Sync {
    /// Length of the parameter vector.
    fn n_params(&self) -> usize;

    /// Numbers that describe an example.
    fn n_features(&self) -> usize;

    /// Number of classes.
    fn n_classes(&self) -> usize;

    /// Whether all nodes must start from the same parameters: averaging models of several layers
    /// that started differently destroys them.
    fn starts_alike(&self) -> bool;

    /// Draws parameters to start from.
    fn init(&self, rng: &mut Rng, params: &mut [f32]);

    /// The scores of each class, before softmax.
    ///
    /// # Shapes
    /// - `params`: `[n_params]`
    /// - `features`: `[n_examples, n_features]`
    /// - `logits`: `[n_examples, n_classes]`
    fn logits(&self, params: &[f32], features: &[f32], logits: &mut [f32], scratch: &mut Scratch);

    /// Overwrites `gradient` (`[n_params]`) with that of the batch's mean loss, which is returned.
    fn gradient(
        &self,
        params: &[f32],
        batch: Batch<'_>,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) -> f32;
}
