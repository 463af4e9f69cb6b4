//! Max pooling.

use super::Result;
use super::error::{check, checked};
use crate::cpu::isa::{Isa, per_isa};

/// The largest of each window of a plane, without padding; windows that would reach beyond the plane
/// are left out, as PyTorch does by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool2d {
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    isa: Isa,
}

impl MaxPool2d {
    /// Over planes `[height, width]`, in windows of `kernel` × `kernel` that begin `stride` apart;
    /// with the best instructions of this machine.
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if the window is empty or larger than the
    /// plane, or the stride is 0.
    pub fn new(height: usize, width: usize, kernel: usize, stride: usize) -> Result<Self> {
        check("max pooling", "kernel", kernel.max(1), kernel)?;
        check("max pooling", "stride", stride.max(1), stride)?;
        check("max pooling", "height", height.max(kernel), height)?;
        check("max pooling", "width", width.max(kernel), width)?;
        // Positions are counted in u32.
        let n_values = height.saturating_mul(width);
        let most = n_values.min(u32::MAX as usize);
        check("max pooling", "values of a plane", most, n_values)?;
        Ok(Self {
            height,
            width,
            kernel,
            stride,
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

    /// Rows of a result.
    pub fn out_height(&self) -> usize {
        (self.height - self.kernel) / self.stride + 1
    }

    /// Columns of a result.
    pub fn out_width(&self) -> usize {
        (self.width - self.kernel) / self.stride + 1
    }

    /// Values of a result.
    pub fn out_len(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// The largest values, and where in its plane each is: the first of equals; NaN is larger than
    /// any number.
    ///
    /// # Shapes
    /// - `x`: `[n_planes, height, width]`, `out` and `places`: `[n_planes, out_height, out_width]`
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree.
    pub fn forward(&self, x: &[f32], out: &mut [f32], places: &mut [u32]) -> Result<()> {
        self.check(x.len(), out.len(), places.len())?;
        let planes = x.chunks_exact(self.height * self.width);
        let out_len = self.out_len();
        let results = out
            .chunks_exact_mut(out_len)
            .zip(places.chunks_exact_mut(out_len));
        for (x, (out, places)) in planes.zip(results) {
            largest(self.isa, self, x, out, places);
        }
        Ok(())
    }

    /// Sets `d_x` to the gradient at the input: each value of `d_out` goes where its largest was.
    ///
    /// # Shapes
    /// As [`MaxPool2d::forward`], which filled `places`.
    ///
    /// # Errors
    /// [`LinalgError::Shape`](super::LinalgError::Shape) if they disagree or a place lies outside of
    /// its plane.
    pub fn backward(&self, d_out: &[f32], places: &[u32], d_x: &mut [f32]) -> Result<()> {
        self.check(d_x.len(), d_out.len(), places.len())?;
        d_x.fill(0.0);
        let out_len = self.out_len();
        let results = d_out
            .chunks_exact(out_len)
            .zip(places.chunks_exact(out_len));
        for (d_x, (d_out, places)) in d_x.chunks_exact_mut(self.height * self.width).zip(results) {
            for (d, &place) in d_out.iter().zip(places) {
                let n = d_x.len();
                match d_x.get_mut(place as usize) {
                    Some(d_x) => *d_x += d,
                    None => check("max pooling", "place in a plane", n - 1, place as usize)?,
                }
            }
        }
        Ok(())
    }

    fn check(&self, x: usize, out: usize, places: usize) -> Result<()> {
        let n_planes = x / (self.height * self.width);
        let n_values = n_planes * self.height * self.width;
        check("max pooling", "values of whole planes", n_values, x)?;
        let n_results = n_planes * self.out_len();
        check("max pooling", "values of the result", n_results, out)?;
        check("max pooling", "n_places", n_results, places)
    }
}

per_isa! {
    /// One plane: a row of results at a time meets each value of its windows in turn.
    fn largest(pool: &MaxPool2d, x: &[f32], out: &mut [f32], places: &mut [u32]) {
        let (width, stride, out_width) = (pool.width, pool.stride, pool.out_width());
        let rows = out.chunks_exact_mut(out_width).zip(places.chunks_exact_mut(out_width));
        for (y, (out, places)) in rows.enumerate() {
            out.fill(f32::NEG_INFINITY);
            for (i, place) in places.iter_mut().enumerate() {
                *place = (y * stride * width + i * stride) as u32;
            }
            for ky in 0..pool.kernel {
                let first = (y * stride + ky) * width;
                for at in first..first + pool.kernel {
                    let taken = x[at..].iter().step_by(stride);
                    let results = out.iter_mut().zip(places.iter_mut());
                    for ((i, (best, place)), &value) in results.enumerate().zip(taken) {
                        let is_larger = value > *best || value.is_nan();
                        *best = if is_larger { value } else { *best };
                        *place = if is_larger { (at + i * stride) as u32 } else { *place };
                    }
                }
            }
        }
    }
}
