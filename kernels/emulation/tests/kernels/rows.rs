//! Embedding, residual and norm, the weighted sum over experts, pooling.

use std::ptr::{null, null_mut};

use half::{bf16, f16};
use rand::RngExt;

use crate::support::{Element, SEEDS, args, assert_near, numbers, rng, run};

const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (8, 32), (9, 33), (5, 130), (17, 384)];
const EPS: f32 = 1e-5;

/// `norm(row)` in f64.
fn norm(row: &[f64], weight: &[f32], bias: Option<&[f32]>, is_rms: bool) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = if is_rms {
        0.0
    } else {
        row.iter().sum::<f64>() / n
    };
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (variance + f64::from(EPS)).sqrt();
    let bias = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i]));
    let of = |(i, x): (usize, &f64)| (x - mean) * factor * f64::from(weight[i]) + bias(i);
    row.iter().enumerate().map(of).collect()
}

fn norms_of<T: Element>() {
    let mut rng = rng(3);
    for (n_tokens, width) in SHAPES {
        let (x, y): (Vec<T>, Vec<T>) = (
            numbers(n_tokens * width, &mut rng),
            numbers(n_tokens * width, &mut rng),
        );
        let (weight, bias): (Vec<f32>, Vec<f32>) =
            (numbers(width, &mut rng), numbers(width, &mut rng));
        for case in 0..8 {
            let (has_y, has_norm, is_rms) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
            let sums: Vec<f64> = (x.iter().zip(&y))
                .map(|(x, y)| x.value() + if has_y { y.value() } else { 0.0 })
                .collect();
            let rows = sums.chunks(width).flat_map(|row| match has_norm {
                true => norm(row, &weight, (!is_rms).then_some(&bias[..]), is_rms),
                false => row.to_vec(),
            });
            let expected: Vec<f64> = rows.collect();
            // In place: the sum takes the place of x.
            let mut sum = x.clone();
            let mut out = vec![T::of(77.0); n_tokens * width];
            let mut x_at = sum.as_ptr();
            let mut y_at = if has_y { y.as_ptr() } else { null() };
            let mut weight_at = if has_norm { weight.as_ptr() } else { null() };
            let mut bias_at = if is_rms { null() } else { bias.as_ptr() };
            let (mut eps, mut rms) = (EPS, u32::from(is_rms));
            let (mut tokens, mut cols) = (n_tokens as u32, width as u32);
            let (mut sum_at, mut out_at) = (sum.as_mut_ptr(), out.as_mut_ptr());
            let mut args = args![
                x_at, y_at, weight_at, bias_at, eps, rms, tokens, cols, sum_at, out_at
            ];
            let name = format!("norm_{}", T::NAME);
            run(&name, [n_tokens.div_ceil(4), 1], 128, 0, case, &mut args);
            let what = format!("{name} {n_tokens} x {width}, case {case}");
            assert_near(&out, &expected, 10.0, &what);
            assert_near(&sum, &sums, 1.0, &what);
        }
    }
}

#[test]
fn sums_are_normalised() {
    norms_of::<f32>();
    norms_of::<bf16>();
    norms_of::<f16>();
}

fn embeddings_of<T: Element>() {
    const N_ROWS: usize = 11;
    let mut rng = rng(4);
    for (n_tokens, width) in SHAPES {
        let tables: [Vec<T>; 3] = [(); 3].map(|()| numbers(N_ROWS * width, &mut rng));
        let idx = [(); 3].map(|()| {
            let rows = (0..n_tokens).map(|_| rng.random_range(0..N_ROWS as u32));
            rows.collect::<Vec<_>>()
        });
        let scales = [2.5_f32, 1.0, -0.5];
        let (weight, bias): (Vec<f32>, Vec<f32>) =
            (numbers(width, &mut rng), numbers(width, &mut rng));
        for n_tables in 1..=3 {
            let value = |at: usize| {
                let (token, i) = (at / width, at % width);
                let of = |j: usize| {
                    f64::from(scales[j]) * tables[j][idx[j][token] as usize * width + i].value()
                };
                (0..n_tables).map(of).sum::<f64>()
            };
            let sums: Vec<f64> = (0..n_tokens * width).map(value).collect();
            let rows = sums
                .chunks(width)
                .flat_map(|row| norm(row, &weight, Some(&bias), false));
            let expected: Vec<f64> = rows.collect();
            let mut out = vec![T::of(77.0); n_tokens * width];
            let mut table = [0, 1, 2].map(|j| {
                if j < n_tables {
                    tables[j].as_ptr()
                } else {
                    null()
                }
            });
            let mut row = [0, 1, 2].map(|j: usize| idx[j].as_ptr());
            let mut scale = scales;
            let (mut weight_at, mut bias_at) = (weight.as_ptr(), bias.as_ptr());
            let (mut eps, mut rms) = (EPS, 0_u32);
            let (mut tokens, mut cols) = (n_tokens as u32, width as u32);
            let mut out_at = out.as_mut_ptr();
            let mut args = args![
                table[0], row[0], scale[0], table[1], row[1], scale[1], table[2], row[2], scale[2],
                weight_at, bias_at, eps, rms, tokens, cols, out_at
            ];
            let name = format!("embed_{}", T::NAME);
            for seed in SEEDS {
                run(&name, [n_tokens.div_ceil(4), 1], 128, 0, seed, &mut args);
                assert_near(
                    &out,
                    &expected,
                    20.0,
                    &format!("{name} {n_tokens} x {width} of {n_tables}"),
                );
            }
        }
    }
}

#[test]
fn rows_of_tables_are_added_and_normalised() {
    embeddings_of::<f32>();
    embeddings_of::<bf16>();
    embeddings_of::<f16>();
}

fn combinations_of<T: Element>() {
    let mut rng = rng(5);
    for (n_tokens, width) in SHAPES {
        for top_k in [1, 2, 3] {
            let n_rows = n_tokens * top_k;
            let y: Vec<T> = numbers(n_rows * width, &mut rng);
            let weight: Vec<f32> = numbers(n_rows, &mut rng);
            let place: Vec<u32> = (0..n_rows)
                .map(|_| match rng.random_range(0..4) {
                    0 => u32::MAX,
                    _ => rng.random_range(0..n_rows as u32),
                })
                .collect();
            let value = |at: usize| {
                let (token, i) = (at / width, at % width);
                let of = |a: usize| match place[a] {
                    u32::MAX => 0.0,
                    row => f64::from(weight[a]) * y[row as usize * width + i].value(),
                };
                (token * top_k..(token + 1) * top_k).map(of).sum::<f64>()
            };
            let expected: Vec<f64> = (0..n_tokens * width).map(value).collect();
            let mut out = vec![T::of(77.0); n_tokens * width];
            let (mut y_at, mut place_at, mut weight_at) =
                (y.as_ptr(), place.as_ptr(), weight.as_ptr());
            let (mut k, mut cols, mut out_at) = (top_k as u32, width as u32, out.as_mut_ptr());
            let mut args = args![y_at, place_at, weight_at, k, cols, out_at];
            let name = format!("combine_{}", T::NAME);
            for seed in SEEDS {
                run(&name, [n_tokens, 2], 64, 0, seed, &mut args);
                assert_near(
                    &out,
                    &expected,
                    10.0,
                    &format!("{name} {n_tokens} x {width}, top {top_k}"),
                );
            }
        }
    }
}

#[test]
fn what_experts_say_is_added_by_weight() {
    combinations_of::<f32>();
    combinations_of::<bf16>();
    combinations_of::<f16>();
}

fn pools_of<T: Element>() {
    let mut rng = rng(6);
    for width in [1, 31, 256, 300] {
        let start: [u32; 6] = [0, 1, 1, 6, 8, 19];
        let x: Vec<T> = numbers(19 * width, &mut rng);
        for case in 0..6 {
            let (mut rule, mut is_normalized) = (case % 3, case / 3);
            let expected = start.windows(2).flat_map(|bounds| {
                let rows = match (rule, bounds[0] as usize, bounds[1] as usize) {
                    (0, first, last) => first..last.min(first + 1),
                    (1, first, last) => first..last,
                    (_, first, last) => last.saturating_sub(1).max(first)..last,
                };
                let share = 1.0 / rows.len().max(1) as f64;
                let value =
                    |i: usize| rows.clone().map(|t| x[t * width + i].value()).sum::<f64>() * share;
                let row: Vec<f64> = (0..width).map(value).collect();
                let length = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
                let divisor = if is_normalized > 0 { length } else { 1.0 };
                row.into_iter().map(move |x| x / divisor)
            });
            let expected: Vec<f64> = expected.collect();
            let mut out = vec![77.0_f32; 5 * width];
            let (mut x_at, mut start_at) = (x.as_ptr(), start.as_ptr());
            let (mut cols, mut out_at) = (width as u32, out.as_mut_ptr());
            let mut args = args![x_at, start_at, rule, is_normalized, cols, out_at];
            let name = format!("pool_{}", T::NAME);
            for seed in SEEDS {
                run(&name, [5, 1], 256, width, seed, &mut args);
                assert_near(
                    &out,
                    &expected,
                    1.0,
                    &format!("{name}, width {width}, case {case}"),
                );
            }
        }
    }
}

#[test]
fn sequences_become_one_vector() {
    pools_of::<f32>();
    pools_of::<bf16>();
    pools_of::<f16>();
}

#[test]
fn nothing_is_kept_where_nobody_needs_it() {
    let x = [3.0_f32, 4.0];
    let mut out = [0.0_f32; 2];
    let weight = [1.0_f32; 2];
    let (mut x_at, mut y_at, mut weight_at) = (x.as_ptr(), null::<f32>(), weight.as_ptr());
    let (mut bias_at, mut eps, mut rms) = (null::<f32>(), 0.0_f32, 1_u32);
    let (mut tokens, mut cols) = (1_u32, 2_u32);
    let (mut sum_at, mut out_at) = (null_mut::<f32>(), out.as_mut_ptr());
    let mut args = args![
        x_at, y_at, weight_at, bias_at, eps, rms, tokens, cols, sum_at, out_at
    ];
    run("norm_f32", [1, 1], 32, 0, 1, &mut args);
    let root = 12.5_f32.sqrt();
    assert!((out[0] - 3.0 / root).abs() < 1e-6 && (out[1] - 4.0 / root).abs() < 1e-6);
}
