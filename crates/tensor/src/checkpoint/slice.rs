//! Cutting an N-d slice out of a strided tensor.

use std::borrow::Cow;
use std::ops::Range;

/// Where the elements of a tensor lie: element `idx` at `Σ idx[axis] · strides[axis]`.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Size of every axis.
    pub(crate) shape: Vec<usize>,
    /// Distance between neighbours on every axis, in elements.
    pub(crate) strides: Vec<usize>,
}

/// The row-major strides of a shape that has passed [`checked_n_elements`].
pub(crate) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

/// The number of elements of a shape, if its bytes fit in memory.
///
/// Axes of size zero count as one for the limit, so that no product of sizes, in whatever
/// order, overflows later.
pub(crate) fn checked_n_elements(shape: &[usize]) -> Option<usize> {
    const MAX_ELEM_SIZE: usize = 16;
    let limit = isize::MAX as usize / MAX_ELEM_SIZE;
    let n = shape
        .iter()
        .try_fold(1, |n: usize, &dim| n.checked_mul(dim.max(1)))?;
    let n_elements = if shape.contains(&0) { 0 } else { n };
    (n <= limit).then_some(n_elements)
}

impl Layout {
    /// How many elements from the first to one past the last, if that fits.
    pub(crate) fn checked_extent(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let reach = |(&dim, &stride): (&usize, &usize)| (dim - 1).checked_mul(stride);
        let mut axes = self.shape.iter().zip(&self.strides);
        axes.try_fold(1, |end: usize, axis| end.checked_add(reach(axis)?))
    }

    /// Cuts `ranges`, which the caller has checked, out of the bytes of the tensor.
    ///
    /// Borrows where the slice is one run of bytes, and copies run by run elsewhere.
    pub(crate) fn cut<'a>(
        &self,
        bytes: &'a [u8],
        elem_size: usize,
        ranges: &[Range<usize>],
    ) -> Cow<'a, [u8]> {
        let dims: Vec<usize> = ranges.iter().map(Range::len).collect();
        if dims.contains(&0) {
            return Cow::Borrowed(&[]);
        }
        let first: usize = ranges
            .iter()
            .zip(&self.strides)
            .map(|(r, stride)| r.start * stride)
            .sum();
        let bytes = &bytes[first * elem_size..];
        let (n_outer, run) = self.longest_run(&dims);
        if n_outer == 0 {
            return Cow::Borrowed(&bytes[..run * elem_size]);
        }
        let mut out = Vec::with_capacity(dims.iter().product::<usize>() * elem_size);
        let strides: Vec<usize> = self
            .strides
            .iter()
            .map(|stride| stride * elem_size)
            .collect();
        copy_runs(bytes, &dims[..n_outer], &strides, run * elem_size, &mut out);
        Cow::Owned(out)
    }

    /// Splits the axes of a slice into outer ones and a suffix that is one run of elements.
    ///
    /// Returns the number of outer axes and the length of the run.
    fn longest_run(&self, dims: &[usize]) -> (usize, usize) {
        let mut n_outer = dims.len();
        let mut run = 1;
        while n_outer > 0 && (dims[n_outer - 1] == 1 || self.strides[n_outer - 1] == run) {
            n_outer -= 1;
            run *= dims[n_outer];
        }
        (n_outer, run)
    }
}

/// Appends the runs at every index of the axes `dims`, in row-major order; all sizes in bytes.
fn copy_runs(bytes: &[u8], dims: &[usize], strides: &[usize], run: usize, out: &mut Vec<u8>) {
    let (&n_inner, outer) = dims.split_last().expect("at least one outer axis");
    let inner_stride = strides[outer.len()];
    let mut idx = vec![0; outer.len()];
    loop {
        let base: usize = idx.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        for i in 0..n_inner {
            let start = base + i * inner_stride;
            out.extend_from_slice(&bytes[start..start + run]);
        }
        if !advance(&mut idx, outer) {
            return;
        }
    }
}

/// Counts `idx` up by one in row-major order; false once it has come around.
fn advance(idx: &mut [usize], dims: &[usize]) -> bool {
    for (i, &dim) in idx.iter_mut().zip(dims).rev() {
        *i += 1;
        if *i < dim {
            return true;
        }
        *i = 0;
    }
    false
}
