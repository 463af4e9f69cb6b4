//! The layers of GN-LeNet: convolution, group norm, ReLU, max pooling.

use moeshard_tensor::cpu::Isa;
use moeshard_tensor::linalg::{
    Conv2d, ConvGradients, ConvShape, GroupNorm, GroupStats, MaxPool2d, Update, relu, relu_backward,
};

use super::numbers;

/// One layer with its parameters, what it computed last, and gradients.
pub(crate) struct Layer {
    conv: Conv2d,
    norm: GroupNorm,
    pool: MaxPool2d,
    n_images: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    scale: Vec<f32>,
    x: Vec<f32>,
    convolved: Vec<f32>,
    normed: Vec<f32>,
    out: Vec<f32>,
    places: Vec<u32>,
    stats: Vec<GroupStats>,
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
    d_scale: Vec<f32>,
    d_shift: Vec<f32>,
    d_x: Vec<f32>,
    d_convolved: Vec<f32>,
    d_normed: Vec<f32>,
    d_out: Vec<f32>,
    is_first: bool,
}

impl Layer {
    pub(crate) fn new(isa: Isa, layer: usize, n_images: usize) -> Self {
        let (n_in, n_out, side) = [(3, 32, 32), (32, 32, 15), (32, 64, 7)][layer];
        let shape = ConvShape {
            n_in,
            n_out,
            height: side,
            width: side,
            kernel: 5,
            padding: 2,
        };
        let norm = GroupNorm::new(2, n_out, side * side, 1e-5);
        let pool = MaxPool2d::new(side, side, 3, 2).and_then(|pool| pool.with_isa(isa));
        let pool = pool.expect("a shape");
        let (n_pooled, n_values) = (
            n_images * n_out * pool.out_len(),
            n_images * shape.out_len(),
        );
        let numbers = |n: usize| numbers(n).to_vec();
        Self {
            conv: Conv2d::with_isa(shape, isa).expect("a shape"),
            norm: norm.and_then(|norm| norm.with_isa(isa)).expect("a shape"),
            pool,
            n_images,
            weight: numbers(shape.weight_len()),
            bias: numbers(n_out),
            scale: vec![1.0; n_out],
            x: numbers(n_images * shape.image_len()),
            convolved: numbers(n_values),
            normed: vec![0.0; n_values],
            out: vec![0.0; n_pooled],
            places: vec![0; n_pooled],
            stats: vec![GroupStats::default(); 2 * n_images],
            d_weight: vec![0.0; shape.weight_len()],
            d_bias: vec![0.0; n_out],
            d_scale: vec![0.0; n_out],
            d_shift: vec![0.0; n_out],
            d_x: vec![0.0; n_images * shape.image_len()],
            d_convolved: numbers(n_values),
            d_normed: vec![0.0; n_values],
            d_out: numbers(n_pooled),
            is_first: layer == 0,
        }
    }

    /// Of the forward pass.
    pub(crate) fn n_flops(&self) -> usize {
        let shape = self.conv.shape();
        let pixels = self.n_images * shape.out_height() * shape.out_width();
        2 * pixels * shape.weight_len()
    }

    /// Values between the convolution and the pooling.
    pub(crate) fn n_values(&self) -> usize {
        self.convolved.len()
    }

    pub(crate) fn convolve(&mut self) {
        let forward = self
            .conv
            .forward(&self.x, &self.weight, &self.bias, &mut self.convolved);
        forward.expect("lengths");
    }

    pub(crate) fn convolve_back(&mut self) {
        let into = ConvGradients {
            weight: &mut self.d_weight,
            bias: &mut self.d_bias,
            x: (!self.is_first).then_some(&mut self.d_x),
        };
        let conv = &mut self.conv;
        conv.backward(&self.x, &self.weight, &self.d_convolved, Update::SET, into)
            .expect("lengths");
    }

    pub(crate) fn forward_rest(&mut self) {
        let (x, out) = (&self.convolved, &mut self.normed);
        let norm = self
            .norm
            .forward(x, &self.scale, &self.bias, out, &mut self.stats);
        norm.expect("lengths");
        relu(&mut self.normed);
        let pool = self
            .pool
            .forward(&self.normed, &mut self.out, &mut self.places);
        pool.expect("lengths");
    }

    pub(crate) fn backward_rest(&mut self) {
        let pool = self
            .pool
            .backward(&self.d_out, &self.places, &mut self.d_normed);
        pool.expect("lengths");
        relu_backward(&self.normed, &mut self.d_normed).expect("lengths");
        let norm = self.norm.backward(
            &self.convolved,
            &self.scale,
            &self.stats,
            &self.d_normed,
            Update::SET,
            &mut self.d_convolved,
            &mut self.d_scale,
            &mut self.d_shift,
        );
        norm.expect("lengths");
    }
}

/// Forward and backward through all layers.
pub(crate) fn step(layers: &mut [Layer]) {
    for i in 0..layers.len() {
        layers[i].convolve();
        layers[i].forward_rest();
        if let [layer, next] = &mut layers[i..(i + 2).min(3)] {
            next.x.copy_from_slice(&layer.out);
        }
    }
    for i in (0..layers.len()).rev() {
        layers[i].backward_rest();
        layers[i].convolve_back();
        if let [before, layer] = &mut layers[i.saturating_sub(1)..=i] {
            before.d_out.copy_from_slice(&layer.d_x);
        }
    }
}
