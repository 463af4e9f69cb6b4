//! Max pooling.

use super::Result;
use super::error::{check, checked};
use super::lanes::{EndLanes, LaneWork, on_lanes};
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;

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
        let work = Largest {
            pool: self,
            x,
            out,
            places,
        };
        // SAFETY: `new` and `with_isa` check the instructions.
        unsafe { on_lanes(self.isa, work) };
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

/// The forward pass.
struct Largest<'a> {
    pool: &'a MaxPool2d,
    x: &'a [f32],
    out: &'a mut [f32],
    places: &'a mut [u32],
}

impl LaneWork for Largest<'_> {
    /// Sixteen windows side by side at a time, whether the row of results has as many or not.
    #[inline(always)]
    unsafe fn run<L: EndLanes>(self) {
        let pool = self.pool;
        let out_width = pool.out_width();
        let rows = self.out.chunks_exact_mut(out_width);
        let rows = rows.zip(self.places.chunks_exact_mut(out_width));
        for (row, (out, places)) in rows.enumerate() {
            let plane = row / pool.out_height() * pool.height * pool.width;
            let x = &self.x[plane..];
            let row = row % pool.out_height() * pool.stride * pool.width;
            let windows = out.chunks_mut(LANES).zip(places.chunks_mut(LANES));
            for (i, (out, places)) in windows.enumerate() {
                let first = row + i * LANES * pool.stride;
                // SAFETY: the instructions are there by the caller's promise.
                let (best, taps) = unsafe { largest::<L>(pool, x, first) };
                out.copy_from_slice(&best[..out.len()]);
                for (i, (place, tap)) in places.iter_mut().zip(taps).enumerate() {
                    *place = (first + i * pool.stride) as u32 + tap;
                }
            }
        }
    }
}

/// The largest of the window that begins at `first` and of each of the next fifteen, and how far
/// behind the beginning of its window it lies.
///
/// # Safety
/// The instructions of `L` are available.
#[inline(always)]
unsafe fn largest<L: EndLanes>(
    pool: &MaxPool2d,
    x: &[f32],
    first: usize,
) -> ([f32; LANES], [u32; LANES]) {
    let (mut best, mut taps) = ([0.0; LANES], [0; LANES]);
    // SAFETY: the caller's promise; sixteen elements are stored to each array. Lanes of `taps` hold
    // bits of integers, which nothing computes with.
    unsafe {
        let mut found = (L::splat(f32::NEG_INFINITY), L::zero());
        for ky in 0..pool.kernel {
            for kx in 0..pool.kernel {
                let tap = ky * pool.width + kx;
                let new = taken::<L>(x, first + tap, pool.stride);
                found = L::larger(found, (new, L::splat(f32::from_bits(tap as u32))));
            }
        }
        found.0.store(best.as_mut_ptr());
        found.1.store(taps.as_mut_ptr().cast());
    }
    (best, taps)
}

/// Sixteen values `stride` apart; zeroes beyond the end, where no window of the plane begins.
///
/// # Safety
/// The instructions of `L` are available.
#[inline(always)]
unsafe fn taken<L: EndLanes>(x: &[f32], first: usize, stride: usize) -> L {
    let whole = x.get(first..first + LANES * stride);
    // SAFETY: the caller's promise; as many elements are there as each load needs.
    unsafe {
        match (whole, stride) {
            (Some(x), 1) => L::load_f32(x.as_ptr()),
            (Some(x), 2) => L::load_alternate(x.as_ptr()),
            _ => {
                let mut values = [0.0; LANES];
                for (i, value) in values.iter_mut().enumerate() {
                    *value = x.get(first + i * stride).copied().unwrap_or(0.0);
                }
                L::load_f32(values.as_ptr())
            }
        }
    }
}
