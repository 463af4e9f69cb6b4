//! Attention against its formula.

use moeshard_tensor::cpu::{Tensor, relative_bucket};
use moeshard_tensor::device::Device;
use moeshard_tensor::device::{AttentionShape, PositionRule};

use crate::support::{Random, assert_close, on_every_path};

/// Attention written as its formula, one sequence after the other.
fn plain_attention(
    qkv: &[f32],
    cu_seqlens: &[usize],
    shape: &AttentionShape,
    bias: &[f32],
) -> Vec<f64> {
    let AttentionShape {
        n_heads,
        head_dim,
        scale,
        position,
    } = *shape;
    let width = n_heads * head_dim;
    let mut out = vec![0.0; cu_seqlens[cu_seqlens.len() - 1] * width];
    let rotated = |token: usize, position_idx: usize, part: usize, head: usize| -> Vec<f64> {
        let at = token * 3 * width + part * width + head * head_dim;
        let mut x: Vec<f64> = qkv[at..at + head_dim]
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        if let (PositionRule::Rotary { base, dim }, true) = (position, part < 2) {
            for i in 0..dim / 2 {
                let angle =
                    position_idx as f64 * f64::from(base).powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (x[i], x[i + dim / 2]);
                x[i] = a * angle.cos() - b * angle.sin();
                x[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
        x
    };
    for seq in cu_seqlens.windows(2) {
        for head in 0..n_heads {
            for i in seq[0]..seq[1] {
                let q = rotated(i, i - seq[0], 0, head);
                let scores: Vec<f64> = (seq[0]..seq[1])
                    .map(|j| {
                        let k = rotated(j, j - seq[0], 1, head);
                        let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                        let bias = match position {
                            PositionRule::RelativeBias {
                                n_buckets,
                                max_distance,
                            } => {
                                let distance = j as i64 - i as i64;
                                let bucket = relative_bucket(distance, n_buckets, max_distance);
                                f64::from(bias[bucket * n_heads + head])
                            }
                            _ => 0.0,
                        };
                        dot * f64::from(scale) + bias
                    })
                    .collect();
                let largest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                let powers: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                for (j, p) in (seq[0]..seq[1]).zip(&powers) {
                    let v = rotated(j, 0, 2, head);
                    for (d, v) in v.iter().enumerate() {
                        out[i * width + head * head_dim + d] += p / sum * v;
                    }
                }
            }
        }
    }
    out
}

#[test]
fn attention_matches_its_formula() {
    let rules = [
        PositionRule::None,
        PositionRule::Rotary {
            base: 10_000.0,
            dim: 6,
        },
        PositionRule::RelativeBias {
            n_buckets: 32,
            max_distance: 128,
        },
    ];
    on_every_path(|device, path| {
        let mut random = Random(3);
        for position in rules {
            for (n_heads, head_dim) in [(1, 7), (3, 12), (2, 33)] {
                let shape = AttentionShape {
                    n_heads,
                    head_dim,
                    scale: 0.7,
                    position,
                };
                // One token, an odd length, one query block and a bit, and nothing at all.
                let cu_seqlens = [0, 1, 18, 18, 67];
                let mut qkv = random.tensor(67, 3 * n_heads * head_dim);
                let bias = matches!(position, PositionRule::RelativeBias { .. })
                    .then(|| random.numbers(32 * n_heads));
                let found = device.attention(&mut qkv, &cu_seqlens, &shape, bias.as_ref());
                let bias = bias.clone().unwrap_or_default();
                let expected = plain_attention(qkv.as_slice(), &cu_seqlens, &shape, &bias);
                let what = format!("{shape:?} on {path}");
                assert_close(&what, found.expect("attention").as_slice(), &expected);
            }
        }
    });
}

#[test]
fn scores_of_minus_infinity_leave_the_finite_ones_their_weight() {
    on_every_path(|device, path| {
        // Query 0 meets −∞ at the first 299 keys and 0 at the last.
        let n = 300;
        let mut qkv = vec![0.0; 3 * n];
        for (token, row) in qkv.chunks_exact_mut(3).enumerate() {
            let key = if token < n - 1 { -1e30 } else { 0.0 };
            row.copy_from_slice(&[if token == 0 { 1e30 } else { 0.0 }, key, token as f32]);
        }
        let shape = AttentionShape {
            n_heads: 1,
            head_dim: 1,
            scale: 1.0,
            position: PositionRule::None,
        };
        let out = device.attention(&mut Tensor::new(n, 3, qkv), &[0, n], &shape, None);
        assert_eq!(out.expect("attention").as_slice()[0], 299.0, "{path}");
    });
}
