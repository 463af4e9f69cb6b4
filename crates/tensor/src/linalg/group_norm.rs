//! Group normalisation.

use super::Result;
use super::conv::Update;
use super::error::{check, checked};
use crate::cpu::isa::{Isa, per_isa};
use crate::cpu::lanes::LANES;

/// Normalises each group of channels of each image, then scales and shifts each channel:
/// `y = (x − mean) / sqrt(variance + eps) · weight + bias`, with the biased variance.
///
/// # Source
/// Wu and He, arXiv:1803.08494.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    n_groups: usize,
    n_channels: usize,
    n_pixels: usize,
    eps: f32,
    isa: Isa,
}

/// Mean and `1 / sqrt(variance + eps)` of a group of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupStats {
    mean: f32,
    factor: f32,
}

impl GroupNorm {
    /// Over images `[n_channels, n_pixels]`, whose channels form `n_groups`; with the best
    /// instructions of this machine.
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if an image is empty or the channels do not
    /// form as many groups.
    pub fn new(n_groups: usize, n_channels: usize, n_pixels: usize, eps: f32) -> Result<Self> {
        check("group norm", "n_pixels", n_pixels.max(1), n_pixels)?;
        check("group norm", "n_channels", n_channels.max(1), n_channels)?;
        check("group norm", "n_groups", n_groups.max(1), n_groups)?;
        let in_groups = n_channels / n_groups * n_groups;
        check(
            "group norm",
            "channels of whole groups",
            in_groups,
            n_channels,
        )?;
        Ok(Self {
            n_groups,
            n_channels,
            n_pixels,
            eps,
            isa: Isa::detect(),
        })
    }

    /// The same with the instructions named.
    ///
    /// # Errors
    /// [`LinalgError::Isa`](super::LinalgError::Isa) if this machine lacks them.
    pub fn with_isa(mut self, isa: Isa) -> Result<Self> {
        self.isa = checked(isa)?;
        Ok(self)
    }

    /// Normalises images, and keeps what the way back needs.
    ///
    /// # Shapes
    /// - `x` and `out`: `[n_images, n_channels, n_pixels]`, `weight` and `bias`: `[n_channels]`,
    ///   `stats`: `[n_images, n_groups]`
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree.
    pub fn forward(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        out: &mut [f32],
        stats: &mut [GroupStats],
    ) -> Result<()> {
        self.check(x.len(), weight.len(), stats.len())?;
        check("group norm", "n_biases", self.n_channels, bias.len())?;
        check("group norm", "values of the result", x.len(), out.len())?;
        let group_len = self.group_len();
        let groups = x
            .chunks_exact(group_len)
            .zip(out.chunks_exact_mut(group_len));
        for (i, ((x, out), stats)) in groups.zip(stats).enumerate() {
            let channels = self.channels(i);
            let scales = (&weight[channels.clone()], &bias[channels]);
            normalise(self.isa, self, x, scales, out, stats);
        }
        Ok(())
    }

    /// Gradients of a scalar whose gradient at the result is `d_out`: sets `d_x`, updates `d_weight`
    /// and `d_bias` as `update` says.
    ///
    /// # Shapes
    /// As [`GroupNorm::forward`], which filled `stats`.
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree.
    #[expect(clippy::too_many_arguments, reason = "each is an array of the formula")]
    pub fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        stats: &[GroupStats],
        d_out: &[f32],
        update: Update,
        d_x: &mut [f32],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
    ) -> Result<()> {
        self.check(x.len(), weight.len(), stats.len())?;
        check("group norm", "values of the gradient", x.len(), d_out.len())?;
        check("group norm", "gradient of images", x.len(), d_x.len())?;
        check(
            "group norm",
            "gradient of weights",
            self.n_channels,
            d_weight.len(),
        )?;
        check(
            "group norm",
            "gradient of biases",
            self.n_channels,
            d_bias.len(),
        )?;
        for (to, to_bias) in d_weight.iter_mut().zip(d_bias.iter_mut()) {
            update.apply(0.0, to);
            update.apply(0.0, to_bias);
        }
        let group_len = self.group_len();
        let given = x.chunks_exact(group_len).zip(d_out.chunks_exact(group_len));
        let groups = given.zip(d_x.chunks_exact_mut(group_len)).zip(stats);
        for (i, (((x, d_out), d_x), stats)) in groups.enumerate() {
            let channels = self.channels(i);
            let sums = (
                &mut d_weight[channels.clone()],
                &mut d_bias[channels.clone()],
            );
            let scales = (&weight[channels], update.alpha);
            denormalise(self.isa, self, (x, d_out), scales, stats, d_x, sums);
        }
        Ok(())
    }

    /// Channels of the `i`-th group of all images.
    fn channels(&self, i: usize) -> std::ops::Range<usize> {
        let n = self.n_channels / self.n_groups;
        let first = i % self.n_groups * n;
        first..first + n
    }

    /// Values of a group.
    fn group_len(&self) -> usize {
        self.n_channels / self.n_groups * self.n_pixels
    }

    fn check(&self, x: usize, weight: usize, stats: usize) -> Result<()> {
        let image_len = self.n_channels * self.n_pixels;
        let n_images = x / image_len;
        check(
            "group norm",
            "values of whole images",
            n_images * image_len,
            x,
        )?;
        check("group norm", "n_weights", self.n_channels, weight)?;
        check("group norm", "n_stats", n_images * self.n_groups, stats)
    }
}

per_isa! {
    /// One group of one image.
    fn normalise(
        norm: &GroupNorm,
        x: &[f32],
        scales: (&[f32], &[f32]),
        out: &mut [f32],
        stats: &mut GroupStats,
    ) {
        let n = x.len() as f32;
        let mean = sums(x, x, 0.0).0 / n;
        // Of the differences: squares of large numbers would cancel.
        let variance = squares(x, mean) / n;
        let factor = 1.0 / (variance + norm.eps).sqrt();
        *stats = GroupStats { mean, factor };
        let channels = x.chunks_exact(norm.n_pixels).zip(out.chunks_exact_mut(norm.n_pixels));
        for ((x, out), (weight, bias)) in channels.zip(scales.0.iter().zip(scales.1)) {
            let slope = factor * weight;
            for (out, x) in out.iter_mut().zip(x) {
                *out = (x - mean) * slope + bias;
            }
        }
    }
}

per_isa! {
    /// One group of one image. With x̂ the normalised input and d̂ the gradient there,
    /// `d_x = factor · (d̂ − mean(d̂) − x̂ · mean(d̂ · x̂))`.
    fn denormalise(
        norm: &GroupNorm,
        given: (&[f32], &[f32]),
        scales: (&[f32], f32),
        stats: &GroupStats,
        d_x: &mut [f32],
        gradients: (&mut [f32], &mut [f32]),
    ) {
        let (x, d_out) = given;
        let (weight, alpha) = scales;
        let GroupStats { mean, factor } = *stats;
        let (mut of_d, mut of_product) = (0.0, 0.0);
        let channels = x.chunks_exact(norm.n_pixels).zip(d_out.chunks_exact(norm.n_pixels));
        let outs = gradients.0.iter_mut().zip(gradients.1).zip(weight);
        for ((x, d_out), ((d_weight, d_bias), weight)) in channels.zip(outs) {
            let (d, product) = sums(d_out, x, mean);
            *d_weight += alpha * product * factor;
            *d_bias += alpha * d;
            of_d += weight * d;
            of_product += weight * product * factor;
        }
        let n = x.len() as f32;
        let (of_d, of_product) = (of_d / n, of_product / n);
        let channels = x.chunks_exact(norm.n_pixels).zip(d_out.chunks_exact(norm.n_pixels));
        let outs = d_x.chunks_exact_mut(norm.n_pixels).zip(weight);
        for ((x, d_out), (d_x, weight)) in channels.zip(outs) {
            for ((d_x, x), d) in d_x.iter_mut().zip(x).zip(d_out) {
                let normal = (x - mean) * factor;
                *d_x = factor * (d * weight - of_d - normal * of_product);
            }
        }
    }
}

/// `Σ d` and `Σ d · (x − mean)`, over sixteen partial sums each.
#[inline(always)]
fn sums(d: &[f32], x: &[f32], mean: f32) -> (f32, f32) {
    let (d_blocks, d_rest) = d.as_chunks::<LANES>();
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    let (mut of_d, mut of_product) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for (d, x) in d_blocks.iter().zip(x_blocks) {
        for i in 0..LANES {
            of_d[i] += d[i];
            of_product[i] += d[i] * (x[i] - mean);
        }
    }
    for (i, (d, x)) in d_rest.iter().zip(x_rest).enumerate() {
        of_d[i] += d;
        of_product[i] += d * (x - mean);
    }
    (of_d.iter().sum(), of_product.iter().sum())
}

/// `Σ (x − mean)²`, over sixteen partial sums.
#[inline(always)]
fn squares(x: &[f32], mean: f32) -> f32 {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut partial = [0.0_f32; LANES];
    for block in blocks {
        for i in 0..LANES {
            partial[i] += (block[i] - mean) * (block[i] - mean);
        }
    }
    for (sum, x) in partial.iter_mut().zip(rest) {
        *sum += (x - mean) * (x - mean);
    }
    partial.iter().sum()
}
