//! Products of every expert's rows, on the tensor cores' instructions.

use std::ptr::null;

use half::{bf16, f16};
use rand::RngExt;

use crate::support::{Element, SEEDS, args, assert_near, numbers, rng, run};

const SHARED_WORDS: usize = 98_304 / 4;

/// Rows of each expert, and the shape of its matrix.
struct Case {
    n_rows: &'static [usize],
    n: usize,
    k: usize,
    /// Rows are gathered from tokens that have so many experts each.
    top_k: Option<usize>,
    has_bias: bool,
    activation: u32,
    n_blocks: usize,
}

fn activate(x: f64, activation: u32) -> f64 {
    match activation {
        1 => x.max(0.0),
        // Φ by its integral: Simpson's rule over −x..x.
        2 => {
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let h = x / 1000.0;
            let inner = |i: u32| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 };
            let sum = density(0.0) + density(x) + (1..1000).map(inner).sum::<f64>();
            x * (0.5 + sum * h / 3.0)
        }
        3 => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        4 => x / (1.0 + (-x).exp()),
        5 => x.tanh(),
        _ => x,
    }
}

/// What a kernel is given, but for the shape.
struct Operands<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    bias: &'a [f32],
    offsets: &'a [u32],
    assignment: &'a [u32],
}

/// `[n_all, n]` in f64.
fn expected<T: Element>(case: &Case, operands: &Operands<'_, T>) -> Vec<f64> {
    let Operands {
        x,
        weight,
        bias,
        offsets,
        assignment,
    } = operands;
    let Case { n, k, .. } = *case;
    let mut expected = Vec::new();
    for e in 0..case.n_rows.len() {
        let rows = offsets[e] as usize..offsets[e + 1] as usize;
        for (i, from) in rows.clone().zip(&assignment[rows]) {
            let row = case.top_k.map_or(i, |top_k| *from as usize / top_k);
            for col in e * n..(e + 1) * n {
                let pairs = x[row * k..][..k].iter().zip(&weight[col * k..][..k]);
                let sum: f64 = pairs.map(|(x, w)| x.value() * w.value()).sum();
                let bias = if case.has_bias { bias[col] } else { 0.0 };
                expected.push(activate(sum + f64::from(bias), case.activation));
            }
        }
    }
    expected
}

fn check<T: Element>(case: &Case) {
    let mut rng = rng(7);
    let (n_experts, n_all) = (case.n_rows.len(), case.n_rows.iter().sum::<usize>());
    let Case { n, k, .. } = *case;
    let n_tokens = n_all.div_ceil(case.top_k.unwrap_or(1)).max(1);
    let x: Vec<T> = numbers(n_tokens.max(n_all) * k, &mut rng);
    let weight: Vec<T> = numbers(n_experts * n * k, &mut rng);
    let bias: Vec<f32> = numbers(n_experts * n, &mut rng);
    let mut offsets = vec![0_u32];
    for rows in case.n_rows {
        offsets.push(offsets[offsets.len() - 1] + *rows as u32);
    }
    let top_k = case.top_k.unwrap_or(1);
    let n_assignments = (n_tokens * top_k) as u32;
    let assignment: Vec<u32> = (0..n_all)
        .map(|_| rng.random_range(0..n_assignments))
        .collect();
    let operands = Operands {
        x: &x,
        weight: &weight,
        bias: &bias,
        offsets: &offsets,
        assignment: &assignment,
    };
    let expected = expected(case, &operands);
    let mut out = vec![T::of(77.0); n_all * n];
    let (mut x_at, mut weight_at, mut offsets_at) = (x.as_ptr(), weight.as_ptr(), offsets.as_ptr());
    let mut bias_at = if case.has_bias { bias.as_ptr() } else { null() };
    let mut assignment_at = if case.top_k.is_some() {
        assignment.as_ptr()
    } else {
        null()
    };
    let (mut experts, mut per_token) = (n_experts as u32, top_k as u32);
    let (mut cols, mut depth, mut activation) = (n as u32, k as u32, case.activation);
    let mut out_at = out.as_mut_ptr();
    let mut args = args![
        x_at,
        weight_at,
        bias_at,
        offsets_at,
        assignment_at,
        experts,
        per_token,
        cols,
        depth,
        activation,
        out_at
    ];
    let name = format!("grouped_gemm_{}", T::NAME);
    for seed in SEEDS {
        run(
            &name,
            [case.n_blocks, 1],
            256,
            SHARED_WORDS,
            seed,
            &mut args,
        );
        let what = format!("{name}, rows {:?}, n {n}, k {k}", case.n_rows);
        assert_near(&out, &expected, k as f64, &what);
    }
}

fn check_all(case: &Case) {
    check::<bf16>(case);
    check::<f16>(case);
}

const PLAIN: Case = Case {
    n_rows: &[1],
    n: 1,
    k: 8,
    top_k: None,
    has_bias: false,
    activation: 0,
    n_blocks: 1,
};

#[test]
fn odd_shapes_have_their_products() {
    check_all(&PLAIN);
    for (n_rows, n, k) in [
        (&[7][..], 5, 16),
        (&[0, 3, 0, 0, 20], 33, 72),
        (&[128, 1], 128, 64),
        (&[129, 0, 40], 130, 200),
        (&[16, 17, 15], 8, 648),
    ] {
        for n_blocks in [1, 5] {
            check_all(&Case {
                n_rows,
                n,
                k,
                n_blocks,
                ..PLAIN
            });
        }
    }
}

#[test]
fn rows_are_gathered_and_finished() {
    for (activation, top_k) in [(0, 1), (1, 2), (2, 3), (3, 1), (4, 2), (5, 1)] {
        check_all(&Case {
            n_rows: &[3, 0, 30, 9],
            n: 21,
            k: 40,
            top_k: Some(top_k),
            has_bias: true,
            activation,
            n_blocks: 3,
        });
    }
}

#[test]
fn without_rows_nothing_is_written() {
    check_all(&Case {
        n_rows: &[0, 0, 0],
        n: 9,
        k: 24,
        n_blocks: 4,
        ..PLAIN
    });
}
