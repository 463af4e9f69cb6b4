//! What attention knows of positions: tables of rotations and of distance biases.

use super::lanes::LANES;
use crate::device::{AttentionShape, PositionRule};

/// What attention needs to know of positions, for sequences up to a length.
#[derive(Default)]
pub(crate) struct Positions {
    /// What `rotations` are for.
    rule: Option<PositionRule>,
    /// `[n_positions, dim / 2]` pairs `(cos, sin)`
    pub(crate) rotations: Vec<(f32, f32)>,
    /// `[n_heads, 2 · longest − 1 + 15]`: entry `longest − 1 + i − j` is the bias of query `i` and
    /// key `j`; the last fifteen belong to lanes without a query.
    pub(crate) biases: Vec<f32>,
    /// Tokens of the longest sequence.
    pub(crate) longest: usize,
}

impl Positions {
    /// Makes tables for sequences of up to `longest` tokens; `bias` is `[n_buckets, n_heads]` or empty.
    pub(crate) fn prepare(&mut self, shape: &AttentionShape, longest: usize, bias: &[f32]) {
        self.longest = longest;
        match shape.position {
            PositionRule::None => {}
            PositionRule::Rotary { base, dim } => self.rotate(shape.position, base, dim / 2),
            PositionRule::RelativeBias {
                n_buckets,
                max_distance,
            } => {
                let n_distances = self.n_distances();
                self.biases.clear();
                self.biases.resize(shape.n_heads * n_distances, 0.0);
                for at in 0..(2 * longest).saturating_sub(1) {
                    let distance = longest as i64 - 1 - at as i64;
                    let bucket = relative_bucket(distance, n_buckets, max_distance);
                    for head in 0..shape.n_heads {
                        self.biases[head * n_distances + at] = bias[bucket * shape.n_heads + head];
                    }
                }
            }
        }
    }

    /// Entries of one head's biases.
    pub(crate) fn n_distances(&self) -> usize {
        2 * self.longest + LANES - 2
    }

    /// Extends the table of rotations to the longest sequence.
    fn rotate(&mut self, rule: PositionRule, base: f32, half: usize) {
        if self.rule != Some(rule) {
            self.rotations.clear();
            self.rule = Some(rule);
        }
        for i in self.rotations.len()..self.longest * half {
            let (position, pair) = (i / half, i % half);
            self.rotations.push(rotation(base, half, pair, position));
        }
    }
}

/// Cosine and sine of the angle by which a position turns pair `pair` of `half`.
///
/// # Source
/// RoFormer, arXiv:2104.09864, equation 34.
pub fn rotation(base: f32, half: usize, pair: usize, position: usize) -> (f32, f32) {
    let frequency = f64::from(base).powf(-(pair as f64) / half as f64);
    let (sin, cos) = (position as f64 * frequency).sin_cos();
    (cos as f32, sin as f32)
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
