//! What is computed row by row: embedding, residual and norm, the weighted sum over experts, rotary positions,
//! pooling.

use std::ffi::c_void;

use half::{bf16, f16};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use crate::support::{Element, SEEDS, args, assert_near, numbers, pointer, rng, run};

// The last is wider than what a warp keeps of a row.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (8, 32), (9, 33), (17, 130), (2, 1091)];
const FACTOR: f32 = -1.5;
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

/// `norm(row)` of each row; `norm` says with what: nothing, mean and bias, or neither.
fn normed(
    sums: &[f64],
    width: usize,
    weight: &[f32],
    bias: &[f32],
    norm_rule: NormRule,
) -> Vec<f64> {
    let rows = sums.chunks(width).flat_map(|row| match norm_rule {
        NormRule::None => row.to_vec(),
        NormRule::Layer => norm(row, weight, Some(bias), false),
        NormRule::Rms => norm(row, weight, None, true),
    });
    rows.collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum NormRule {
    None,
    Layer,
    Rms,
}

const NORM_RULES: [NormRule; 3] = [NormRule::None, NormRule::Layer, NormRule::Rms];

/// What kernels that normalise are given last: the norm, the shape, and where the result goes.
struct NormArgs<T> {
    weight: *const f32,
    bias: *const f32,
    eps: f32,
    is_rms: u32,
    n_tokens: u32,
    width: u32,
    out: *mut T,
}

impl<T: Element> NormArgs<T> {
    fn new(
        rule: NormRule,
        (weight, bias): (&[f32], &[f32]),
        (n_tokens, width): (usize, usize),
        out: *mut T,
    ) -> Self {
        Self {
            weight: pointer(rule != NormRule::None, weight),
            bias: pointer(rule == NormRule::Layer, bias),
            eps: EPS,
            is_rms: u32::from(rule == NormRule::Rms),
            n_tokens: n_tokens as u32,
            width: width as u32,
            out,
        }
    }

    /// Runs a kernel with `first` before these.
    fn run<const N: usize>(&mut self, name: &str, seed: u64, first: [*mut c_void; N]) {
        let n_tokens = self.n_tokens as usize;
        let last = args![
            self.weight,
            self.bias,
            self.eps,
            self.is_rms,
            self.n_tokens,
            self.width,
            self.out
        ];
        let mut args = [&first[..], &last].concat();
        run_rows::<T>(name, n_tokens, seed, &mut args);
    }
}

/// Launches with a block more than there are tokens for.
fn run_rows<T: Element>(name: &str, n_tokens: usize, seed: u64, args: &mut [*mut c_void]) {
    let name = format!("{name}_{}", T::NAME);
    let grid = [n_tokens.div_ceil(8) + 1, 1];
    run(&name, grid, 256, 0, seed, args);
}

/// That rows are near what is expected, and that what lies behind them is as it was.
#[track_caller]
fn assert_rows<T: Element>(out: &[T], expected: &[f64], size: f64, what: &str) {
    let (rows, behind) = out.split_at(expected.len());
    assert_near(rows, expected, size, &format!("{} {what}", T::NAME));
    assert!(behind.iter().all(|x| x.value() == 77.0), "{what}, behind");
}

/// Rows behind the last token: as many as a block has.
const BEHIND: usize = 8;

fn room<T: Element>(n_tokens: usize, width: usize) -> Vec<T> {
    vec![T::of(77.0); (n_tokens + BEHIND) * width]
}

fn norms_of<T: Element>() {
    let mut rng = rng(3);
    for (shape, rule, has_y, has_bias) in cases() {
        let (n_tokens, width) = shape;
        let n = n_tokens * width;
        let (x, y): (Vec<T>, Vec<T>) = (numbers(n, &mut rng), numbers(n, &mut rng));
        let [bias, weight, norm_bias] = [(); 3].map(|()| numbers::<f32>(width, &mut rng));
        let sum = |at: usize| {
            let y = if has_y { y[at].value() } else { 0.0 };
            let bias = if has_bias { bias[at % width] } else { 0.0 };
            f64::from(FACTOR) * x[at].value() + y + f64::from(bias)
        };
        let sums: Vec<f64> = (0..n).map(sum).collect();
        let expected = normed(&sums, width, &weight, &norm_bias, rule);
        // Apart, in place of x, in place of y.
        let n_places = if has_y { 3 } else { 2 };
        for (place, &seed) in SEEDS[..n_places].iter().enumerate() {
            let mut out = room(n_tokens, width);
            if place > 0 {
                out[..n].copy_from_slice(if place == 1 { &x } else { &y });
            }
            let out_at = out.as_mut_ptr();
            let mut x_at = if place == 1 {
                out_at
            } else {
                x.as_ptr().cast_mut()
            };
            let mut y_at = if place == 2 {
                out_at
            } else {
                pointer(has_y, &y).cast_mut()
            };
            let mut factor = FACTOR;
            let mut bias_at = pointer(has_bias, &bias);
            let mut norm = NormArgs::new(rule, (&weight, &norm_bias), shape, out_at);
            let first = args![x_at, factor, y_at, bias_at];
            norm.run("norm", seed, first);
            let what = format!("{shape:?} {rule:?}, place {place}");
            assert_rows(&out, &expected, 20.0, &what);
        }
    }
}

/// Shapes, norms, and two things that may be missing.
fn cases() -> impl Iterator<Item = ((usize, usize), NormRule, bool, bool)> {
    SHAPES.into_iter().flat_map(|shape| {
        NORM_RULES.into_iter().flat_map(move |rule| {
            [(false, false), (false, true), (true, false), (true, true)]
                .map(|(a, b)| (shape, rule, a, b))
        })
    })
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
    for (shape, rule, is_first_exact, is_second_exact) in cases() {
        let (n_tokens, width) = shape;
        let is_exact = [is_first_exact, is_second_exact, !is_first_exact];
        let tables: [Vec<T>; 3] = [(); 3].map(|()| numbers(N_ROWS * width, &mut rng));
        let exact: [Vec<f32>; 3] = [(); 3].map(|()| numbers(N_ROWS * width, &mut rng));
        let idx = [(); 3].map(|()| {
            let rows = (0..n_tokens).map(|_| rng.random_range(0..N_ROWS as u32));
            rows.collect::<Vec<_>>()
        });
        let scales = [2.5_f32, 1.0, -0.5];
        let [weight, norm_bias] = [(); 2].map(|()| numbers::<f32>(width, &mut rng));
        for n_tables in 1..=3 {
            let value = |at: usize| {
                let of = |j: usize| {
                    let from = idx[j][at / width] as usize * width + at % width;
                    let x = if is_exact[j] {
                        exact[j][from].value()
                    } else {
                        tables[j][from].value()
                    };
                    f64::from(scales[j]) * x
                };
                (0..n_tables).map(of).sum::<f64>()
            };
            let sums: Vec<f64> = (0..n_tokens * width).map(value).collect();
            let expected = normed(&sums, width, &weight, &norm_bias, rule);
            let mut out = room::<T>(n_tokens, width);
            let mut table = [0, 1, 2].map(|j| {
                let rows = pointer(j < n_tables, &tables[j]).cast::<c_void>();
                let of_f32 = pointer(j < n_tables, &exact[j]).cast();
                if is_exact[j] { of_f32 } else { rows }
            });
            let mut exact = is_exact.map(u32::from);
            let mut row = [0, 1, 2].map(|j: usize| idx[j].as_ptr());
            let mut scale = scales;
            let out_at = out.as_mut_ptr();
            let mut norm = NormArgs::new(rule, (&weight, &norm_bias), shape, out_at);
            let first = args![
                table[0], exact[0], row[0], scale[0], table[1], exact[1], row[1], scale[1],
                table[2], exact[2], row[2], scale[2]
            ];
            norm.run("embed", SEEDS[n_tables - 1], first);
            let what = format!("{shape:?} {rule:?} of {n_tables}");
            assert_rows(&out, &expected, 20.0, &what);
        }
    }
}

#[test]
fn rows_of_tables_are_added_and_normalised() {
    embeddings_of::<f32>();
    embeddings_of::<bf16>();
    embeddings_of::<f16>();
}

/// Rows of any order, some dropped.
fn places(n: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let draw = |_| match rng.random_range(0..4) {
        0 => u32::MAX,
        _ => rng.random_range(0..n as u32),
    };
    (0..n).map(draw).collect()
}

fn combinations_of<T: Element>() {
    let mut rng = rng(5);
    for ((shape, rule, has_residual, has_bias), top_k) in
        cases().zip([1, 2, 3, 5, 2].iter().copied().cycle())
    {
        let (n_tokens, width) = shape;
        let (n, n_rows) = (n_tokens * width, n_tokens * top_k);
        let (y, residual): (Vec<T>, Vec<T>) =
            (numbers(n_rows * width, &mut rng), numbers(n, &mut rng));
        let gate: Vec<f32> = numbers(n_rows, &mut rng);
        let [bias, weight, norm_bias] = [(); 3].map(|()| numbers::<f32>(width, &mut rng));
        let place = places(n_rows, &mut rng);
        let sum = |at: usize| {
            let (token, i) = (at / width, at % width);
            let of = |a: usize| match place[a] {
                u32::MAX => 0.0,
                row => f64::from(gate[a]) * y[row as usize * width + i].value(),
            };
            let sum: f64 = (token * top_k..(token + 1) * top_k).map(of).sum();
            let residual = if has_residual {
                residual[at].value()
            } else {
                0.0
            };
            let bias = if has_bias { bias[i] } else { 0.0 };
            f64::from(FACTOR) * sum + residual + f64::from(bias)
        };
        let sums: Vec<f64> = (0..n).map(sum).collect();
        let expected = normed(&sums, width, &weight, &norm_bias, rule);
        for seed in SEEDS {
            let mut out = room(n_tokens, width);
            // Once in place.
            let in_place = has_residual && seed == SEEDS[0];
            if in_place {
                out[..n].copy_from_slice(&residual);
            }
            let out_at = out.as_mut_ptr();
            let apart = pointer(has_residual, &residual).cast_mut();
            let mut residual_at = if in_place { out_at } else { apart };
            let (mut y_at, mut place_at, mut gate_at) = (y.as_ptr(), place.as_ptr(), gate.as_ptr());
            let (mut k, mut factor, mut bias_at) = (top_k as u32, FACTOR, pointer(has_bias, &bias));
            let mut norm = NormArgs::new(rule, (&weight, &norm_bias), shape, out_at);
            let first = args![y_at, place_at, gate_at, k, factor, residual_at, bias_at];
            norm.run("combine", seed, first);
            let what = format!("{shape:?} {rule:?}, top {top_k}");
            // A row of almost equal numbers is blown up by its norm.
            assert_rows(&out, &expected, 50.0, &what);
        }
    }
}

#[test]
fn what_experts_say_is_added_by_weight() {
    combinations_of::<f32>();
    combinations_of::<bf16>();
    combinations_of::<f16>();
}

fn rotations_of<T: Element>() {
    let mut rng = rng(11);
    for (n_tokens, n_heads, head_dim, dim) in [
        (1, 1, 2, 2),
        (9, 3, 6, 4),
        (17, 2, 64, 64),
        (3, 1, 200, 130),
        (2, 2, 5, 0),
    ] {
        let width = 3 * n_heads * head_dim;
        let x: Vec<T> = numbers(n_tokens * width, &mut rng);
        let position: Vec<u32> = (0..n_tokens).map(|_| rng.random_range(0..600)).collect();
        let half = dim / 2;
        // A cosine and a sine of each pair at each position.
        let rotation: Vec<f32> = numbers(600 * half * 2, &mut rng);
        let mut expected: Vec<f64> = x.iter().map(|x| x.value()).collect();
        for (token, row) in expected.chunks_mut(width).enumerate() {
            for head in row[..2 * n_heads * head_dim].chunks_mut(head_dim) {
                for i in 0..half {
                    let at = (position[token] as usize * half + i) * 2;
                    let (cos, sin) = (f64::from(rotation[at]), f64::from(rotation[at + 1]));
                    let (a, b) = (head[i], head[i + half]);
                    (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
        for seed in SEEDS {
            let mut qkv = room(n_tokens, width);
            qkv[..x.len()].copy_from_slice(&x);
            let (mut qkv_at, mut position_at) = (qkv.as_mut_ptr(), position.as_ptr());
            let (mut rotation_at, mut tokens) = (rotation.as_ptr(), n_tokens as u32);
            let (mut heads, mut of_head, mut turned) =
                (n_heads as u32, head_dim as u32, dim as u32);
            let mut args = args![
                qkv_at,
                position_at,
                rotation_at,
                tokens,
                heads,
                of_head,
                turned
            ];
            run_rows::<T>("rotary", n_tokens, seed, &mut args);
            let what = format!("{n_tokens} tokens, {dim} of {head_dim}");
            assert_rows(&qkv, &expected, 0.5, &what);
        }
    }
}

#[test]
fn queries_and_keys_are_turned_by_their_positions() {
    rotations_of::<f32>();
    rotations_of::<bf16>();
    rotations_of::<f16>();
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
