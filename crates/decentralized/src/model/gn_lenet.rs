//! GN-LeNet: a small convolutional network with group normalisation, which, unlike batch
//! normalisation, does not mind that every node sees other classes.

use moeshard_tensor::linalg::{
    self, Conv2d, ConvGradients, ConvShape, GroupNorm, GroupStats, LinalgError, MaxPool2d, Update,
    relu, relu_backward,
};

use super::linear::{backward, forward, init_layer, layer_params};
use super::loss::cross_entropy_gradient;
use super::{Batch, Mat, Model, Scratch};
use crate::data::ImageShape;
use crate::seed::Rng;

/// Channels of each convolution.
const CHANNELS: [usize; 3] = [32, 32, 64];
const KERNEL: usize = 5;
const N_GROUPS: usize = 2;
/// That of PyTorch.
const EPS: f32 = 1e-5;
/// Images of which logits are computed at a time: their largest results stay in the cache.
const IMAGES: usize = 16;

/// Three times convolution 5×5, group normalisation, ReLU and max pooling 3/2, then a linear layer:
/// 85,354 parameters for CIFAR-10.
///
/// Parameters are, of each convolution, weights `[n_out, n_in, 5, 5]`, biases `[n_out]`, and the
/// factors and shifts of the normalisation, `[n_out]` each; then those of the linear layer.
///
/// # Source
/// Hsieh et al., The non-IID data quagmire, arXiv:1910.00189, as D-Cliques uses it.
#[derive(Clone, Debug)]
pub struct GnLeNet {
    image: ImageShape,
    blocks: Vec<Block>,
    /// Values that the linear layer sees.
    n_hidden: usize,
    n_classes: usize,
}

/// Convolution, normalisation, ReLU, pooling.
#[derive(Clone, Debug)]
struct Block {
    conv: ConvShape,
    norm: GroupNorm,
    pool: MaxPool2d,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    blocks: Vec<BlockBuffers>,
    logits: linalg::Scratch,
    /// Gradients on their way back: one is read, the other written.
    gradients: [linalg::Scratch; 2],
}

/// Results of a block that the way back needs.
#[derive(Debug)]
struct BlockBuffers {
    conv: Conv2d,
    convolved: linalg::Scratch,
    stats: Vec<GroupStats>,
    activated: linalg::Scratch,
    places: Vec<u32>,
    pooled: linalg::Scratch,
}

impl GnLeNet {
    /// A network for images of that shape.
    ///
    /// # Errors
    /// If the images are too small to be pooled three times.
    pub fn new(image: ImageShape, n_classes: usize) -> Result<Self, LinalgError> {
        let (mut n_in, mut height, mut width) = (image.channels, image.height, image.width);
        let mut blocks = Vec::new();
        for n_out in CHANNELS {
            let conv = ConvShape {
                n_in,
                n_out,
                height,
                width,
                kernel: KERNEL,
                padding: KERNEL / 2,
            };
            let pool = MaxPool2d::new(height, width, 3, 2)?;
            let norm = GroupNorm::new(N_GROUPS, n_out, height * width, EPS)?;
            (n_in, height, width) = (n_out, pool.out_height(), pool.out_width());
            blocks.push(Block { conv, norm, pool });
        }
        Ok(Self {
            n_hidden: n_in * height * width,
            image,
            blocks,
            n_classes,
        })
    }

    /// Runs the blocks; their results stay in `buffers`.
    fn features(
        &self,
        params: &[f32],
        images: &[f32],
        buffers: &mut Buffers,
    ) -> Result<(), LinalgError> {
        let n_images = images.len() / self.image.n_features();
        if buffers.blocks.len() != self.blocks.len() {
            let made: Result<_, _> = self.blocks.iter().map(BlockBuffers::new).collect();
            buffers.blocks = made?;
        }
        let mut params = params;
        for i in 0..self.blocks.len() {
            let (before, rest) = buffers.blocks.split_at_mut(i);
            let input = match before.last_mut() {
                Some(before) => before
                    .pooled
                    .room(n_images * self.blocks[i].conv.image_len()),
                None => images,
            };
            let of_block;
            (of_block, params) = params.split_at(self.blocks[i].n_params());
            self.blocks[i].forward(of_block, input, &mut rest[0])?;
        }
        Ok(())
    }
}

impl Block {
    fn n_params(&self) -> usize {
        self.conv.weight_len() + 3 * self.conv.n_out
    }

    /// Weights, biases, factors and shifts.
    fn parts<'p>(&self, params: &'p [f32]) -> [&'p [f32]; 4] {
        let n = self.conv.n_out;
        let (weight, rest) = params.split_at(self.conv.weight_len());
        let (bias, rest) = rest.split_at(n);
        let (factor, shift) = rest.split_at(n);
        [weight, bias, factor, shift]
    }

    fn parts_mut<'p>(&self, params: &'p mut [f32]) -> [&'p mut [f32]; 4] {
        let n = self.conv.n_out;
        let (weight, rest) = params.split_at_mut(self.conv.weight_len());
        let (bias, rest) = rest.split_at_mut(n);
        let (factor, shift) = rest.split_at_mut(n);
        [weight, bias, factor, shift]
    }

    fn forward(
        &self,
        params: &[f32],
        input: &[f32],
        buffers: &mut BlockBuffers,
    ) -> Result<(), LinalgError> {
        let n_images = input.len() / self.conv.image_len();
        let [weight, bias, factor, shift] = self.parts(params);
        let n = n_images * self.conv.out_len();
        let convolved = buffers.convolved.room(n);
        buffers.conv.forward(input, weight, bias, convolved)?;
        buffers
            .stats
            .resize(n_images * N_GROUPS, GroupStats::default());
        let activated = buffers.activated.room(n);
        self.norm
            .forward(convolved, factor, shift, activated, &mut buffers.stats)?;
        relu(activated);
        let n = n_images * self.conv.n_out * self.pool.out_len();
        buffers.places.resize(n, 0);
        let pooled = buffers.pooled.room(n);
        self.pool.forward(activated, pooled, &mut buffers.places)
    }

    /// From the gradient of the block's result, in the first of `d`, those of its parameters and of its
    /// input, which is left in the first of `d`.
    fn backward(
        &self,
        params: &[f32],
        input: &[f32],
        is_first: bool,
        buffers: &mut BlockBuffers,
        d: &mut [linalg::Scratch; 2],
        gradient: &mut [f32],
    ) -> Result<(), LinalgError> {
        let n_images = input.len() / self.conv.image_len();
        let [weight, _, factor, _] = self.parts(params);
        let [d_weight, d_bias, d_factor, d_shift] = self.parts_mut(gradient);
        let n = n_images * self.conv.out_len();
        let [from, to] = d;
        let d_pooled = from.room(n_images * self.conv.n_out * self.pool.out_len());
        let d_activated = to.room(n);
        self.pool.backward(d_pooled, &buffers.places, d_activated)?;
        relu_backward(buffers.activated.room(n), d_activated)?;
        let convolved = buffers.convolved.room(n);
        let d_convolved = from.room(n);
        self.norm.backward(
            convolved,
            factor,
            &buffers.stats,
            d_activated,
            Update::SET,
            d_convolved,
            d_factor,
            d_shift,
        )?;
        let gradients = ConvGradients {
            weight: d_weight,
            bias: d_bias,
            x: (!is_first).then(|| to.room(input.len())),
        };
        (buffers.conv).backward(input, weight, d_convolved, Update::SET, gradients)?;
        d.swap(0, 1);
        Ok(())
    }
}

impl BlockBuffers {
    fn new(block: &Block) -> Result<Self, LinalgError> {
        Ok(Self {
            conv: Conv2d::new(block.conv)?,
            convolved: linalg::Scratch::default(),
            stats: Vec::new(),
            activated: linalg::Scratch::default(),
            places: Vec::new(),
            pooled: linalg::Scratch::default(),
        })
    }
}

impl Model for GnLeNet {
    fn n_params(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::n_params).sum();
        blocks + layer_params(self.n_hidden, self.n_classes)
    }

    fn n_features(&self) -> usize {
        self.image.n_features()
    }

    fn n_classes(&self) -> usize {
        self.n_classes
    }

    fn starts_alike(&self) -> bool {
        true
    }

    fn init(&self, rng: &mut Rng, params: &mut [f32]) {
        let mut params = params;
        for block in &self.blocks {
            let of_block;
            (of_block, params) = params.split_at_mut(block.n_params());
            let [weight, bias, factor, shift] = block.parts_mut(of_block);
            let n_in = block.conv.n_in * KERNEL * KERNEL;
            init_layer(rng, n_in, weight);
            init_layer(rng, n_in, bias);
            factor.fill(1.0);
            shift.fill(0.0);
        }
        init_layer(rng, self.n_hidden, params);
    }

    fn logits(&self, params: &[f32], features: &[f32], logits: &mut [f32], scratch: &mut Scratch) {
        let mut buffers = std::mem::take(&mut scratch.lenet);
        let last = &params[params.len() - layer_params(self.n_hidden, self.n_classes)..];
        let images = features.chunks(IMAGES * self.n_features());
        for (images, logits) in images.zip(logits.chunks_mut(IMAGES * self.n_classes)) {
            let run = self.features(params, images, &mut buffers);
            run.expect("a model knows the shapes of its layers");
            let n = images.len() / self.n_features() * self.n_hidden;
            let hidden = buffers.blocks[CHANNELS.len() - 1].pooled.room(n);
            forward(last, hidden, self.n_hidden, logits, scratch);
        }
        scratch.lenet = buffers;
    }

    fn gradient(
        &self,
        params: &[f32],
        batch: Batch<'_>,
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) -> f32 {
        let mut buffers = std::mem::take(&mut scratch.lenet);
        let result = self.gradient_in(params, batch, gradient, &mut buffers, scratch);
        scratch.lenet = buffers;
        result.expect("a model knows the shapes of its layers")
    }
}

impl GnLeNet {
    fn gradient_in(
        &self,
        params: &[f32],
        batch: Batch<'_>,
        gradient: &mut [f32],
        buffers: &mut Buffers,
        scratch: &mut Scratch,
    ) -> Result<f32, LinalgError> {
        let n = batch.labels.len();
        self.features(params, batch.features, buffers)?;
        let Buffers {
            blocks,
            logits,
            gradients: d,
        } = buffers;
        let n_last = layer_params(self.n_hidden, self.n_classes);
        let (params, last) = params.split_at(params.len() - n_last);
        let (gradient, d_last) = gradient.split_at_mut(params.len());
        let hidden = blocks[CHANNELS.len() - 1].pooled.room(n * self.n_hidden);
        let logits = logits.room(n * self.n_classes);
        forward(last, hidden, self.n_hidden, logits, scratch);
        let loss = cross_entropy_gradient(logits, batch.labels);
        backward(logits, hidden, self.n_hidden, d_last, scratch);
        // [n, n_classes] · [n_classes, n_hidden]
        let w = Mat::new(last, self.n_classes, self.n_hidden);
        let d_hidden = d[0].room(n * self.n_hidden);
        scratch.product(Mat::new(logits, n, self.n_classes), w, 0.0, d_hidden);

        let mut end = params.len();
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let start = end - block.n_params();
            let (before, rest) = blocks.split_at_mut(i);
            let input = match before.last_mut() {
                Some(before) => before.pooled.room(n * block.conv.image_len()),
                None => batch.features,
            };
            let (params, gradient) = (&params[start..end], &mut gradient[start..end]);
            block.backward(params, input, i == 0, &mut rest[0], d, gradient)?;
            end = start;
        }
        Ok(loss)
    }
}
