//! Attention against softmax in f64.

use std::ptr::null;

use half::{bf16, f16};

use crate::support::{Element, SEEDS, args, assert_near, numbers, rng, run};

/// Queries of a block.
const ROWS: usize = 64;
const KEYS: usize = 64;
const SCALE: f32 = 0.4;

/// `[n_tokens, n_heads · d]` in f64; `bias` is of distances up to `max_distance`.
fn expected<T: Element>(
    qkv: &[T],
    start: &[u32],
    (n_heads, d): (usize, usize),
    bias: Option<(&[f32], usize)>,
) -> Vec<f64> {
    let part = |token: usize, part: usize, head: usize| {
        &qkv[((token * 3 + part) * n_heads + head) * d..][..d]
    };
    let mut out = Vec::new();
    for bounds in start.windows(2) {
        let rows = bounds[0] as usize..bounds[1] as usize;
        for i in rows.clone() {
            for head in 0..n_heads {
                let score = |j: usize| {
                    let pairs = part(i, 0, head).iter().zip(part(j, 1, head));
                    let dot: f64 = pairs.map(|(q, k)| q.value() * k.value()).sum();
                    let bias = bias.map_or(0.0, |(bias, most)| {
                        let distance =
                            (j as isize - i as isize).clamp(-(most as isize), most as isize);
                        let at = head * (2 * most + 1) + (most as isize + distance) as usize;
                        f64::from(bias[at])
                    });
                    f64::from(SCALE) * dot + bias
                };
                let scores: Vec<f64> = rows.clone().map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = p.iter().sum();
                out.extend((0..d).map(|at| {
                    let values = rows.clone().map(|j| part(j, 2, head)[at].value());
                    p.iter().zip(values).map(|(p, v)| p * v).sum::<f64>() / sum
                }));
            }
        }
    }
    out
}

fn check<T: Element>(lens: &[usize], n_heads: usize, d: usize, max_distance: Option<usize>) {
    let mut rng = rng(8);
    let mut start = vec![0_u32];
    let mut tiles = Vec::new();
    for (seq, &len) in lens.iter().enumerate() {
        start.push(start[seq] + len as u32);
        tiles.extend(
            (0..len)
                .step_by(ROWS)
                .flat_map(|first| [seq as u32, first as u32]),
        );
    }
    let n_tokens = start[lens.len()] as usize;
    let qkv: Vec<T> = numbers(n_tokens * 3 * n_heads * d, &mut rng);
    let most = max_distance.unwrap_or(0);
    let bias: Vec<f32> = numbers(n_heads * (2 * most + 1), &mut rng);
    let of_bias = max_distance.map(|most| (&bias[..], most));
    let expected = expected(&qkv, &start, (n_heads, d), of_bias);
    let mut out = vec![T::of(77.0); n_tokens * n_heads * d];
    let (mut qkv_at, mut start_at, mut tiles_at) = (qkv.as_ptr(), start.as_ptr(), tiles.as_ptr());
    let (mut heads, mut scale, mut farthest) = (n_heads as u32, SCALE, most as u32);
    let mut bias_at = if max_distance.is_some() {
        bias.as_ptr()
    } else {
        null()
    };
    let mut out_at = out.as_mut_ptr();
    let mut args = args![
        qkv_at, start_at, tiles_at, heads, scale, bias_at, farthest, out_at
    ];
    let name = format!("attention_{}_{d}", T::NAME);
    let shared = (ROWS + 4 * KEYS) * d * 2 / 4;
    for seed in SEEDS {
        run(
            &name,
            [tiles.len() / 2, n_heads],
            128,
            shared,
            seed,
            &mut args,
        );
        // Probabilities are rounded: values up to 2, by so much.
        let size = 1e5 * 2.0 * T::ROUNDING;
        assert_near(
            &out,
            &expected,
            size,
            &format!("{name}, lengths {lens:?}, bias {max_distance:?}"),
        );
    }
}

#[test]
fn sequences_attend_to_themselves() {
    for d in [32, 64, 128] {
        check::<bf16>(&[1], 1, d, None);
        check::<f16>(&[5, 1, 17], 3, d, Some(4));
        check::<bf16>(&[64, 65], 1, d, None);
    }
}

#[test]
fn many_keys_pass_by() {
    check::<f16>(&[3, 200], 2, 32, Some(130));
    check::<bf16>(&[129, 2], 2, 64, Some(1000));
}
