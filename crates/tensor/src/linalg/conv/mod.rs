//! Convolutions of 2-d images as matrix products: `im2col`, a few rows of pixels at a time.
//!
//! With `col[(c, ky, kx), pixel]` the input that a weight meets at a pixel of the result:
//! - forward: `out = W · col + bias`, `[n_out, n_in·k²] · [n_in·k², n_pixels]`
//! - weights: `dWᵀ = Σ col · dOutᵀ`
//! - input: the forward pass of `dOut` with the weights turned by 180° and their channels exchanged
//!
//! Columns are gathered for as many rows of pixels as the second-level cache holds, whatever image
//! they are of, and multiplied while they are there.

mod columns;

use super::error::{check, checked};
use super::{Gemm, MatMut, MatRef, Result, Scratch};
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::LANES;
use columns::{Blocks, Columns, Part};

/// A convolution of stride 1 with a square kernel, over images `[n_in, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels of an image.
    pub n_in: usize,
    /// Channels of a result.
    pub n_out: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Zeroes around an image on each side; fewer than `kernel`.
    pub padding: usize,
}

/// What becomes of a gradient: `new = alpha · gradient + beta · old`, and with `beta` 0 the old value
/// is not read.
///
/// `{ 1, 0 }` sets it, `{ 1, momentum }` makes it a velocity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Factor of the gradient.
    pub alpha: f32,
    /// Factor of what was there.
    pub beta: f32,
}

impl Update {
    /// The gradient itself.
    pub const SET: Self = Self {
        alpha: 1.0,
        beta: 0.0,
    };

    #[inline(always)]
    pub(super) fn apply(self, gradient: f32, to: &mut f32) {
        *to = match self.beta == 0.0 {
            true => self.alpha * gradient,
            false => self.alpha * gradient + self.beta * *to,
        };
    }
}

/// A convolution on the calling thread. Keeps its working memory, so that once the largest batch has
/// been seen nothing is allocated.
#[derive(Debug)]
pub struct Conv2d {
    shape: ConvShape,
    isa: Isa,
    gemm: Gemm,
    columns: Columns,
    /// Results or gradients of a block: `[n_out, n_pixels]`.
    block: Scratch,
    /// Weights turned by 180°, `[n_in, n_out, kernel, kernel]`.
    turned: Scratch,
    /// `[n_in · kernel², n_out]`.
    d_weight: Scratch,
    /// `[n_out]`
    d_bias: Vec<f32>,
}

/// Gradients of a convolution.
#[derive(Debug)]
pub struct ConvGradients<'a> {
    /// `[n_out, n_in, kernel, kernel]`
    pub weight: &'a mut [f32],
    /// `[n_out]`
    pub bias: &'a mut [f32],
    /// `[n_images, n_in, height, width]`, set; `None` where nobody asks, as in the first layer.
    pub x: Option<&'a mut [f32]>,
}

impl ConvShape {
    /// Rows of a result.
    pub fn out_height(&self) -> usize {
        self.height + 2 * self.padding + 1 - self.kernel
    }

    /// Columns of a result.
    pub fn out_width(&self) -> usize {
        self.width + 2 * self.padding + 1 - self.kernel
    }

    /// Values of an image.
    pub fn image_len(&self) -> usize {
        self.n_in * self.height * self.width
    }

    /// Values of a result.
    pub fn out_len(&self) -> usize {
        self.n_out * self.out_height() * self.out_width()
    }

    /// Pixels of a channel of a result.
    fn plane_len(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Weights, without the bias.
    pub fn weight_len(&self) -> usize {
        self.n_out * self.patch_len()
    }

    /// Weights that a pixel of a result has in each channel.
    fn patch_len(&self) -> usize {
        self.n_in * self.kernel * self.kernel
    }

    /// The convolution that takes a gradient back to the input.
    fn turned(&self) -> Self {
        Self {
            n_in: self.n_out,
            n_out: self.n_in,
            height: self.out_height(),
            width: self.out_width(),
            kernel: self.kernel,
            padding: self.kernel - 1 - self.padding,
        }
    }

    fn check(&self) -> Result<()> {
        let padding = self.padding.min(self.kernel.saturating_sub(1));
        check("convolution", "n_in", self.n_in.max(1), self.n_in)?;
        check("convolution", "n_out", self.n_out.max(1), self.n_out)?;
        check("convolution", "kernel", self.kernel.max(1), self.kernel)?;
        check(
            "convolution",
            "padding below the kernel",
            padding,
            self.padding,
        )?;
        let least = (self.kernel - 2 * self.padding.min(self.kernel / 2)).max(1);
        check("convolution", "height", self.height.max(least), self.height)?;
        check("convolution", "width", self.width.max(least), self.width)
    }
}

impl Conv2d {
    /// With the best instructions of this machine.
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if the kernel is empty or larger than a
    /// padded image, or the padding is not smaller than the kernel.
    pub fn new(shape: ConvShape) -> Result<Self> {
        Self::with_isa(shape, Isa::detect())
    }

    /// With the instructions named.
    ///
    /// # Errors
    /// As [`Conv2d::new`], and [`LinalgError::Isa`](super::LinalgError::Isa) if this machine lacks
    /// them.
    pub fn with_isa(shape: ConvShape, isa: Isa) -> Result<Self> {
        shape.check()?;
        Ok(Self {
            shape,
            isa: checked(isa)?,
            gemm: Gemm::with_isa(isa)?,
            columns: Columns::default(),
            block: Scratch::default(),
            turned: Scratch::default(),
            d_weight: Scratch::default(),
            d_bias: Vec::new(),
        })
    }

    /// Its shape.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// `out[i, o, y, x] = bias[o] + Σ weight[o, c, ky, kx] · images[i, c, y + ky − p, x + kx − p]`
    ///
    /// # Shapes
    /// - `images`: `[n_images, n_in, height, width]`, `weight`: `[n_out, n_in, kernel, kernel]`,
    ///   `bias`: `[n_out]`, `out`: `[n_images, n_out, out_height, out_width]`
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree.
    pub fn forward(
        &mut self,
        images: &[f32],
        weight: &[f32],
        bias: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let shape = self.shape;
        let n_images = self.check(images, weight, bias, out)?;
        self.correlate(&shape, n_images, images, weight, Some(bias), out)
    }

    /// Gradients of a scalar whose gradient at the result is `d_out`; weights and bias are updated as
    /// `update` says.
    ///
    /// # Shapes
    /// As [`Conv2d::forward`]; `d_out` is of its `out`.
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree.
    pub fn backward(
        &mut self,
        images: &[f32],
        weight: &[f32],
        d_out: &[f32],
        update: Update,
        gradients: ConvGradients<'_>,
    ) -> Result<()> {
        let shape = self.shape;
        let n_images = self.check(images, weight, gradients.bias, d_out)?;
        let n_weights = gradients.weight.len();
        check(
            "convolution",
            "gradient of weights",
            weight.len(),
            n_weights,
        )?;
        if let Some(d_x) = gradients.x {
            check("convolution", "gradient of images", images.len(), d_x.len())?;
            let mut turned = std::mem::take(&mut self.turned);
            turn(&shape, weight, turned.room(weight.len()));
            let turned_weight = &turned[..weight.len()];
            self.correlate(&shape.turned(), n_images, d_out, turned_weight, None, d_x)?;
            self.turned = turned;
        }
        self.sum_gradients(n_images, images, d_out)?;
        let patch_len = shape.patch_len();
        for (o, to) in gradients.weight.chunks_exact_mut(patch_len).enumerate() {
            for (i, to) in to.iter_mut().enumerate() {
                update.apply(self.d_weight[i * shape.n_out + o], to);
            }
        }
        for (to, &gradient) in gradients.bias.iter_mut().zip(&self.d_bias) {
            update.apply(gradient, to);
        }
        Ok(())
    }

    /// Checks lengths; the number of images.
    fn check(&self, images: &[f32], weight: &[f32], bias: &[f32], out: &[f32]) -> Result<usize> {
        let shape = &self.shape;
        let n_images = images.len() / shape.image_len().max(1);
        let n_values = n_images * shape.image_len();
        check(
            "convolution",
            "values of whole images",
            n_values,
            images.len(),
        )?;
        check("convolution", "n_weights", shape.weight_len(), weight.len())?;
        check("convolution", "n_biases", shape.n_out, bias.len())?;
        let n_results = n_images * shape.out_len();
        check("convolution", "values of the result", n_results, out.len())?;
        Ok(n_images)
    }

    /// The forward pass of any shape, block by block.
    fn correlate(
        &mut self,
        shape: &ConvShape,
        n_images: usize,
        images: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<()> {
        let weight = MatRef::new(weight, shape.n_out, shape.patch_len())?;
        self.columns.forget();
        for block in Blocks::new(shape, n_images) {
            let n_pixels = block.n_pixels(shape);
            let columns = self.columns.gather(self.isa, shape, images, &block);
            let block_out = self.block.room(shape.n_out * n_pixels);
            let product = MatMut::new(block_out, shape.n_out, n_pixels)?;
            self.gemm.run(1.0, weight, columns, 0.0, product)?;
            for part in block.parts(shape) {
                let isa = self.isa;
                for_each_run(shape, &part, |o, run, at| {
                    let from = &block_out[o * n_pixels + at..][..run.len()];
                    add_to_all(isa, from, bias.map_or(0.0, |bias| bias[o]), &mut out[run]);
                });
            }
        }
        Ok(())
    }

    /// Gradients of weights (transposed) and bias, over all blocks.
    fn sum_gradients(&mut self, n_images: usize, images: &[f32], d_out: &[f32]) -> Result<()> {
        let shape = self.shape;
        let (n_out, patch_len) = (shape.n_out, shape.patch_len());
        let d_weight = self.d_weight.room(patch_len * n_out);
        d_weight.fill(0.0);
        self.d_bias.clear();
        self.d_bias.resize(n_out, 0.0);
        self.columns.forget();
        for block in Blocks::new(&shape, n_images) {
            let n_pixels = block.n_pixels(&shape);
            let columns = self.columns.gather(self.isa, &shape, images, &block);
            for part in block.parts(&shape) {
                for_each_run(&shape, &part, |o, run, _| {
                    add_sum(self.isa, &d_out[run], &mut self.d_bias[o]);
                });
            }
            let pixels = match block.only_part(&shape) {
                Some(part) => {
                    let d_out = &d_out[start_of(&shape, &part)..];
                    MatRef::with_strides(d_out, n_out, n_pixels, shape.plane_len(), 1)?
                }
                None => {
                    let copied = self.block.room(n_out * n_pixels);
                    for part in block.parts(&shape) {
                        for_each_run(&shape, &part, |o, run, at| {
                            let copied = &mut copied[o * n_pixels + at..][..run.len()];
                            copied.copy_from_slice(&d_out[run]);
                        });
                    }
                    MatRef::new(copied, n_out, n_pixels)?
                }
            };
            let sums = MatMut::new(d_weight, patch_len, n_out)?;
            self.gemm.run(1.0, columns, pixels.t(), 1.0, sums)?;
        }
        Ok(())
    }
}

/// Calls `f(channel, where its pixels of the part lie in the results, where in the block)`.
#[inline(always)]
fn for_each_run(
    shape: &ConvShape,
    part: &Part,
    mut f: impl FnMut(usize, std::ops::Range<usize>, usize),
) {
    let len = part.rows.len() * shape.out_width();
    for o in 0..shape.n_out {
        let start = start_of(shape, part) + o * shape.plane_len();
        f(o, start..start + len, part.at);
    }
}

/// Where the pixels of a part begin in the results, in the first channel.
fn start_of(shape: &ConvShape, part: &Part) -> usize {
    part.image * shape.out_len() + part.rows.start * shape.out_width()
}

/// `weight[o, c, ky, kx]` to `[c, o, k − 1 − ky, k − 1 − kx]`.
fn turn(shape: &ConvShape, weight: &[f32], to: &mut [f32]) {
    let taps = shape.kernel * shape.kernel;
    for (i, from) in weight.chunks_exact(taps).enumerate() {
        let (o, c) = (i / shape.n_in, i % shape.n_in);
        let to = &mut to[(c * shape.n_out + o) * taps..][..taps];
        for (to, from) in to.iter_mut().rev().zip(from) {
            *to = *from;
        }
    }
}

per_isa! {
    /// `to = from + x`
    fn add_to_all(from: &[f32], x: f32, to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from + x;
        }
    }
}

per_isa! {
    /// Adds all values, over as many partial sums as four registers hold: an addition waits for the
    /// one before it.
    fn add_sum(from: &[f32], to: &mut f32) {
        let (blocks, rest) = from.as_chunks::<{ 4 * LANES }>();
        let mut partial = [0.0_f32; 4 * LANES];
        for block in blocks {
            for (sum, x) in partial.iter_mut().zip(block) {
                *sum += x;
            }
        }
        for (sum, x) in partial.iter_mut().zip(rest) {
            *sum += x;
        }
        *to += partial.iter().sum::<f32>();
    }
}
