//! Bidirectional attention within each packed sequence.
//!
//! `out = softmax(scale · q · kᵀ + bias(j − i)) · v`, head by head. Keys and values of one head
//! are packed into panels; queries come in blocks, so that only `[block, n]` scores exist at a
//! time.

use super::gemm::gemm_serial;
use super::isa::{Isa, per_isa};
use super::math::exp;
use super::norm::sum;
use super::panels::Panels;
use super::parallel::{Parallel, SharedMut};
use crate::device::{AttentionShape, PositionRule};

/// Queries whose scores are computed together: four tiles of twelve rows. With 512 keys their scores
/// are 96 KiB, which stays in the second-level cache.
const QUERY_BLOCK: usize = 48;

/// Computes all sequences and heads.
///
/// # Shapes
/// - `qkv`: `[n_tokens, 3 · n_heads · head_dim]`
/// - `bias`: `[n_buckets, n_heads]` or empty
/// - `out`: `[n_tokens, n_heads · head_dim]`
pub(crate) fn attention(
    isa: Isa,
    parallel: &Parallel,
    qkv: &[f32],
    cu_seqlens: &[usize],
    shape: &AttentionShape,
    bias: &[f32],
    out: &mut [f32],
) {
    let n_seqs = cu_seqlens.len().saturating_sub(1);
    let longest = cu_seqlens
        .windows(2)
        .map(|w| w[1] - w[0])
        .max()
        .unwrap_or(0);
    let rotation = Rotation::new(shape, longest);
    let out = SharedMut::new(out);
    parallel.for_each(n_seqs * shape.n_heads, |i| {
        let (seq, head) = (i / shape.n_heads, i % shape.n_heads);
        let tokens = cu_seqlens[seq]..cu_seqlens[seq + 1];
        let job = Head {
            isa,
            qkv,
            first: tokens.start,
            n: tokens.len(),
            head,
            shape,
            bias,
        };
        // SAFETY: the device has checked that sequences do not overlap, and pieces differ in sequence
        // or head, so they write disjoint elements of `out`.
        unsafe { job.run(rotation.as_ref(), out) };
    });
}

/// Cosines and sines of rotary positions.
struct Rotation {
    /// `[n_positions, dim / 2]` pairs `(cos, sin)`
    table: Vec<(f32, f32)>,
    half: usize,
}

impl Rotation {
    fn new(shape: &AttentionShape, n_positions: usize) -> Option<Self> {
        let PositionRule::Rotary { base, dim } = shape.position else {
            return None;
        };
        let half = dim / 2;
        let table = (0..n_positions * half)
            .map(|i| {
                let (position, pair) = (i / half, i % half);
                let frequency = f64::from(base).powf(-2.0 * pair as f64 / dim as f64);
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (cos as f32, sin as f32)
            })
            .collect();
        Some(Self { table, half })
    }

    /// Rotates pairs `(x[i], x[i + half])` of one head's row.
    fn apply(&self, position: usize, x: &mut [f32]) {
        let angles = &self.table[position * self.half..][..self.half];
        let (low, high) = x.split_at_mut(self.half);
        for ((a, b), &(cos, sin)) in low.iter_mut().zip(high).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// One head of one sequence.
struct Head<'a> {
    isa: Isa,
    qkv: &'a [f32],
    /// Row of the sequence's first token.
    first: usize,
    /// Tokens of the sequence.
    n: usize,
    head: usize,
    shape: &'a AttentionShape,
    bias: &'a [f32],
}

impl Head<'_> {
    /// # Safety
    /// `out` is `[n_tokens, n_heads · head_dim]`, and nobody else touches this head's columns of
    /// this sequence's rows.
    unsafe fn run(&self, rotation: Option<&Rotation>, out: SharedMut) {
        let dim = self.shape.head_dim;
        let (keys, values) = self.pack(rotation);
        let distance_bias = self.distance_bias();
        let mut queries = vec![0.0; QUERY_BLOCK.min(self.n) * dim];
        let mut scores = vec![0.0; QUERY_BLOCK.min(self.n) * self.n];
        let mut mixed = vec![0.0; QUERY_BLOCK.min(self.n) * dim];
        for start in (0..self.n).step_by(QUERY_BLOCK) {
            let m = QUERY_BLOCK.min(self.n - start);
            let queries = &mut queries[..m * dim];
            for (i, query) in queries.chunks_exact_mut(dim).enumerate() {
                self.load(0, start + i, rotation, query);
                query.iter_mut().for_each(|x| *x *= self.shape.scale);
            }
            // [m, dim] · [n, dim]ᵀ -> [m, n]
            let scores = &mut scores[..m * self.n];
            gemm_serial(self.isa, queries, &keys, scores);
            for (i, row) in scores.chunks_exact_mut(self.n).enumerate() {
                // Entry `n − 1 + j − i` of the distances belongs to key j.
                let bias = distance_bias.get(self.n - 1 - (start + i)..).unwrap_or(&[]);
                softmax_row(self.isa, row, bias);
            }
            // [m, n] · [n, dim] -> [m, dim]
            let mixed = &mut mixed[..m * dim];
            gemm_serial(self.isa, scores, &values, mixed);
            for (i, row) in mixed.chunks_exact(dim).enumerate() {
                let width = self.shape.n_heads * dim;
                let at = (self.first + start + i) * width + self.head * dim;
                // SAFETY: row `first + start + i` and this head's columns, by the contract.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.ptr().add(at), dim) };
            }
        }
    }

    /// Keys as `[n outputs, dim inputs]`, values as `[dim outputs, n inputs]`.
    fn pack(&self, rotation: Option<&Rotation>) -> (Panels<f32>, Panels<f32>) {
        let dim = self.shape.head_dim;
        let mut keys = Panels::zeros(self.n, dim);
        let mut values = Panels::zeros(dim, self.n);
        let mut row = vec![0.0; dim];
        for token in 0..self.n {
            self.load(1, token, rotation, &mut row);
            row.iter()
                .enumerate()
                .for_each(|(d, &x)| keys.set(token, d, x));
            self.load(2, token, None, &mut row);
            row.iter()
                .enumerate()
                .for_each(|(d, &x)| values.set(d, token, x));
        }
        (keys, values)
    }

    /// Copies this head's part of query (0), key (1) or value (2) of a token.
    fn load(&self, part: usize, token: usize, rotation: Option<&Rotation>, to: &mut [f32]) {
        let AttentionShape {
            n_heads, head_dim, ..
        } = *self.shape;
        let at = ((self.first + token) * 3 + part) * n_heads * head_dim + self.head * head_dim;
        to.copy_from_slice(&self.qkv[at..][..head_dim]);
        if let Some(rotation) = rotation {
            rotation.apply(token, to);
        }
    }

    /// The bias of distances `−(n − 1) ..= n − 1` (key − query); empty without a bias.
    fn distance_bias(&self) -> Vec<f32> {
        let PositionRule::RelativeBias {
            n_buckets,
            max_distance,
        } = self.shape.position
        else {
            return Vec::new();
        };
        let n = self.n as i64;
        (1 - n..n)
            .map(|distance| {
                let bucket = relative_bucket(distance, n_buckets, max_distance);
                self.bias[bucket * self.shape.n_heads + self.head]
            })
            .collect()
    }
}

/// The bucket of a distance key − query: exact near zero, logarithmic further away.
///
/// # Source
/// T5, arXiv:1910.10683; `_relative_position_bucket` (bidirectional) of `transformers`.
pub fn relative_bucket(distance: i64, n_buckets: usize, max_distance: usize) -> usize {
    let half = n_buckets / 2;
    let offset = if distance > 0 { half } else { 0 };
    let n = distance.unsigned_abs() as usize;
    let exact = half / 2;
    if n < exact {
        return offset + n;
    }
    let ratio = (n as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
    let far = exact + (ratio * (half - exact) as f32) as usize;
    offset + far.min(half - 1)
}

per_isa! {
    /// `softmax(row + bias)`; an empty bias is zero.
    fn softmax_row(row: &mut [f32], bias: &[f32]) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        let largest = row.iter().fold(f32::NEG_INFINITY, |a, &x| if x > a { x } else { a });
        row.iter_mut().for_each(|x| *x = exp(*x - largest));
        let factor = 1.0 / sum(row, |x| x);
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_exact_near_zero_and_saturate() {
        let bucket = |distance| relative_bucket(distance, 32, 128);
        assert_eq!([0, -1, -7, 1, 7].map(bucket), [0, 1, 7, 17, 23]);
        assert_eq!(
            [-8, -127, -128, -5000, 128, 5000].map(bucket),
            [8, 15, 15, 15, 31, 31]
        );
        // 8 + ⌊8 · ln(16/8) / ln(128/8)⌋ = 10
        assert_eq!(bucket(-16), 10);
    }
}
