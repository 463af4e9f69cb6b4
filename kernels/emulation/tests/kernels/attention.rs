//! Attention against softmax in f64.

use half::{bf16, f16};

use crate::support::{Element, SEEDS, args, assert_near, numbers, pointer, rng, run};

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

/// Lengths of sequences, number of heads and their size, distances that have a bias.
struct Case<'a> {
    lens: &'a [usize],
    n_heads: usize,
    d: usize,
    max_distance: Option<usize>,
    /// With plain multiply-adds.
    is_exact: bool,
}

/// Sequences and first queries, with some that are none between and behind them.
fn tiles_of(lens: &[usize]) -> Vec<u32> {
    let mut tiles = Vec::new();
    for (seq, &len) in lens.iter().enumerate() {
        let firsts = (0..len).step_by(ROWS);
        tiles.extend(firsts.flat_map(|first| [seq as u32, first as u32]));
        tiles.extend([seq as u32, len as u32]);
    }
    tiles.extend([0, 1 << 20, 0, u32::MAX, u32::MAX, u32::MAX]);
    tiles
}

fn check<T: Element>(case: &Case<'_>) {
    let mut rng = rng(8);
    let Case { n_heads, d, .. } = *case;
    let mut start = vec![0_u32];
    for len in case.lens {
        start.push(start[start.len() - 1] + *len as u32);
    }
    let tiles = tiles_of(case.lens);
    let n_tokens = start[case.lens.len()] as usize;
    let qkv: Vec<T> = numbers(n_tokens * 3 * n_heads * d, &mut rng);
    let most = case.max_distance.unwrap_or(0);
    let bias: Vec<f32> = numbers(n_heads * (2 * most + 1), &mut rng);
    let of_bias = case.max_distance.map(|most| (&bias[..], most));
    let expected = expected(&qkv, &start, (n_heads, d), of_bias);
    let (mut qkv_at, mut start_at, mut tiles_at) = (qkv.as_ptr(), start.as_ptr(), tiles.as_ptr());
    let (mut heads, mut of_head) = (n_heads as u32, d as u32);
    let (mut scale, mut farthest) = (SCALE, most as u32);
    let mut bias_at = pointer(case.max_distance.is_some(), &bias);
    let grid = [tiles.len() / 2, n_heads];
    for seed in SEEDS {
        // A row more behind.
        let mut out = vec![T::of(77.0); (n_tokens + 1) * n_heads * d];
        let mut out_at = out.as_mut_ptr();
        let name = if case.is_exact {
            let mut args = args![
                qkv_at, start_at, tiles_at, heads, of_head, scale, bias_at, farthest, out_at
            ];
            let name = format!("attention_exact_{}", T::NAME);
            run(&name, grid, 256, 4096 * d.div_ceil(64), seed, &mut args);
            name
        } else {
            let mut args = args![
                qkv_at, start_at, tiles_at, heads, scale, bias_at, farthest, out_at
            ];
            let name = format!("attention_{}_{d}", T::NAME);
            run(
                &name,
                grid,
                128,
                (ROWS + 4 * KEYS) * d * 2 / 4,
                seed,
                &mut args,
            );
            name
        };
        // Without tensor cores nothing is rounded before the end; with them probabilities are: values up to 2,
        // by so much.
        let size = if case.is_exact {
            2.0
        } else {
            1e5 * 2.0 * T::ROUNDING
        };
        let what = format!(
            "{name}, {d}, lengths {:?}, bias {:?}",
            case.lens, case.max_distance
        );
        assert_near(&out[..expected.len()], &expected, size, &what);
        assert!(
            out[expected.len()..].iter().all(|x| x.value() == 77.0),
            "{what}"
        );
    }
}

const PLAIN: Case<'_> = Case {
    lens: &[1],
    n_heads: 1,
    d: 32,
    max_distance: None,
    is_exact: false,
};

#[test]
fn sequences_attend_to_themselves() {
    for d in [32, 64, 128] {
        check::<bf16>(&Case { d, ..PLAIN });
        check::<f16>(&Case {
            lens: &[5, 0, 1, 17],
            n_heads: 3,
            d,
            max_distance: Some(4),
            ..PLAIN
        });
        check::<bf16>(&Case {
            lens: &[64, 65],
            d,
            ..PLAIN
        });
    }
}

#[test]
fn many_keys_pass_by() {
    check::<f16>(&Case {
        lens: &[3, 200],
        n_heads: 2,
        max_distance: Some(130),
        ..PLAIN
    });
    check::<bf16>(&Case {
        lens: &[129, 2],
        n_heads: 2,
        d: 64,
        max_distance: Some(1000),
        ..PLAIN
    });
}

fn exact_of<T: Element>() {
    for (lens, n_heads, d, max_distance) in [
        (&[1][..], 1, 1, None),
        (&[5, 0, 1, 17], 3, 7, Some(4)),
        (&[64, 65], 1, 33, None),
        (&[3, 200], 2, 65, Some(130)),
        (&[129], 1, 256, Some(1000)),
    ] {
        check::<T>(&Case {
            lens,
            n_heads,
            d,
            max_distance,
            is_exact: true,
        });
    }
}

#[test]
fn heads_of_any_size_are_exact() {
    exact_of::<f32>();
    exact_of::<bf16>();
    exact_of::<f16>();
}
