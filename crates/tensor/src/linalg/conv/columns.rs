//! The inputs that weights meet, pixel by pixel.

use std::ops::Range;

use super::ConvShape;
use crate::cpu::isa::Isa;
use crate::cpu::lanes::LANES;
use crate::linalg::lanes::{EndLanes, LaneWork, on_lanes};
use crate::linalg::{MatRef, Scratch};

/// Bytes of a block of columns: half of the second-level cache of the machines at hand, because the
/// weights and the result need room, too.
const BLOCK_BYTES: usize = 512 << 10;

/// Some rows of pixels, counted over all images.
#[derive(Clone, Debug)]
pub(super) struct Block {
    rows: Range<usize>,
}

/// The rows of one image in a block.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) image: usize,
    pub(super) rows: Range<usize>,
    /// The first of its pixels in the block.
    pub(super) at: usize,
}

impl Block {
    pub(super) fn n_pixels(&self, shape: &ConvShape) -> usize {
        self.rows.len() * shape.out_width()
    }

    /// Its rows, if all of them are of one image.
    pub(super) fn only_part(&self, shape: &ConvShape) -> Option<Part> {
        let mut parts = self.parts(shape);
        let first = parts.next();
        first.filter(|_| parts.next().is_none())
    }

    pub(super) fn parts(&self, shape: &ConvShape) -> impl Iterator<Item = Part> + use<> {
        let (rows, width, height) = (self.rows.clone(), shape.out_width(), shape.out_height());
        let mut row = rows.start;
        std::iter::from_fn(move || {
            if row >= rows.end {
                return None;
            }
            let image = row / height;
            let end = rows.end.min((image + 1) * height);
            let part = Part {
                image,
                rows: row - image * height..end - image * height,
                at: (row - rows.start) * width,
            };
            row = end;
            Some(part)
        })
    }
}

/// All rows of pixels of a batch in blocks.
pub(super) struct Blocks {
    next: usize,
    n_rows: usize,
    rows_at_once: usize,
}

impl Blocks {
    pub(super) fn new(shape: &ConvShape, n_images: usize) -> Self {
        let width = shape.out_width();
        let row_bytes = shape.patch_len() * width * size_of::<f32>();
        let most = (BLOCK_BYTES / row_bytes.max(1)).max(1);
        // As few lanes as possible idle in the last group of sixteen pixels, then whole images, whose
        // gradients need not be copied, then as many rows as possible.
        let lanes_used = |rows: usize| {
            let n_pixels = rows * width;
            n_pixels as f64 / n_pixels.next_multiple_of(LANES) as f64
        };
        let candidates = most.div_ceil(2)..=most;
        let is_image = |rows: usize| rows == shape.out_height();
        let better = |&a: &usize, &b: &usize| {
            let by_lanes = lanes_used(a).total_cmp(&lanes_used(b));
            by_lanes.then(is_image(a).cmp(&is_image(b)))
        };
        Self {
            next: 0,
            n_rows: n_images * shape.out_height(),
            rows_at_once: candidates.max_by(better).unwrap_or(1),
        }
    }
}

impl Iterator for Blocks {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        let start = self.next;
        self.next = self.n_rows.min(start + self.rows_at_once);
        (start < self.next).then_some(Block {
            rows: start..self.next,
        })
    }
}

/// Columns of a block, and the padded image that they come from.
#[derive(Debug, Default)]
pub(super) struct Columns {
    columns: Scratch,
    padded: Scratch,
    /// The image that is padded.
    image: Option<usize>,
}

impl Columns {
    /// Before other images come.
    pub(super) fn forget(&mut self) {
        self.image = None;
    }

    /// `[n_in · kernel², n_pixels]` of a block.
    pub(super) fn gather(
        &mut self,
        isa: Isa,
        shape: &ConvShape,
        images: &[f32],
        block: &Block,
    ) -> MatRef<'_> {
        let (n_rows, n_cols) = (shape.patch_len(), block.n_pixels(shape));
        // Beyond the last pixel there is room for what a register has too much; a stride that is no
        // power of two spreads rows over the sets of the caches.
        let row_stride = n_cols.next_multiple_of(LANES) + LANES;
        self.columns.room(n_rows * row_stride);
        for part in block.parts(shape) {
            if self.image != Some(part.image) {
                self.pad(shape, &images[part.image * shape.image_len()..]);
                self.image = Some(part.image);
            }
            let work = Gather {
                shape,
                padded: &self.padded,
                columns: &mut self.columns,
                row_stride,
                part: &part,
            };
            // SAFETY: the convolution has checked the instructions.
            unsafe { on_lanes(isa, work) };
        }
        MatRef {
            data: &self.columns,
            n_rows,
            n_cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// Copies an image with zeroes around it: `[n_in, height + 2p, width + 2p]`.
    fn pad(&mut self, shape: &ConvShape, image: &[f32]) {
        let (width, p) = (shape.width, shape.padding);
        let (padded_height, padded_width) = (shape.height + 2 * p, width + 2 * p);
        let n = shape.n_in * padded_height * padded_width;
        let padded = &mut self.padded.room(n + LANES)[..n];
        padded.fill(0.0);
        for (i, row) in image
            .chunks_exact(width)
            .take(shape.n_in * shape.height)
            .enumerate()
        {
            let (c, y) = (i / shape.height, i % shape.height);
            let at = (c * padded_height + y + p) * padded_width + p;
            padded[at..at + width].copy_from_slice(row);
        }
    }
}

/// Copies the part of one image.
struct Gather<'a> {
    shape: &'a ConvShape,
    padded: &'a [f32],
    columns: &'a mut [f32],
    row_stride: usize,
    part: &'a Part,
}

impl Gather<'_> {
    /// `N` values of each row of pixels at once, at least as many as it has: what is too much at its
    /// end is overwritten by the next row.
    #[inline(always)]
    fn in_one<const N: usize>(self) {
        let (kernel, p) = (self.shape.kernel, self.shape.padding);
        let (height, width) = (self.shape.height + 2 * p, self.shape.width + 2 * p);
        let (out_width, n) = (self.shape.out_width(), self.part.rows.len());
        let mut at = self.part.at;
        for c in 0..self.shape.n_in {
            for ky in 0..kernel {
                for kx in 0..kernel {
                    let first = (c * height + ky + self.part.rows.start) * width + kx;
                    // Both ends are checked here, once for all rows of pixels.
                    let from = &self.padded[first..first + (n - 1) * width + N];
                    let to = &mut self.columns[at..at + (n - 1) * out_width + N];
                    let (mut from, mut to) = (from.as_ptr(), to.as_mut_ptr());
                    for _ in 0..n {
                        // SAFETY: `N` values from either pointer lie within its slice; the pointers
                        // leave it after the last row alone.
                        unsafe {
                            let values = from.cast::<[f32; N]>().read_unaligned();
                            to.cast::<[f32; N]>().write_unaligned(values);
                        }
                        from = from.wrapping_add(width);
                        to = to.wrapping_add(out_width);
                    }
                    at += self.row_stride;
                }
            }
        }
    }

    /// The same for wide rows.
    fn in_many(self) {
        let (kernel, p) = (self.shape.kernel, self.shape.padding);
        let (height, width) = (self.shape.height + 2 * p, self.shape.width + 2 * p);
        let (out_width, taps) = (self.shape.out_width(), kernel * kernel);
        for row in 0..self.shape.patch_len() {
            let (c, ky, kx) = (row / taps, row % taps / kernel, row % kernel);
            let to = &mut self.columns[row * self.row_stride + self.part.at..];
            let pixels = to.chunks_exact_mut(out_width);
            for (y, to) in self.part.rows.clone().zip(pixels) {
                let from = (c * height + ky + y) * width + kx;
                to.copy_from_slice(&self.padded[from..from + out_width]);
            }
        }
    }
}

impl LaneWork for Gather<'_> {
    #[inline(always)]
    unsafe fn run<L: EndLanes>(self) {
        match self.shape.out_width() {
            0..=8 => self.in_one::<8>(),
            9..=16 => self.in_one::<16>(),
            17..=32 => self.in_one::<32>(),
            _ => self.in_many(),
        }
    }
}
