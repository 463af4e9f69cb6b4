//! Products of every expert's rows: on the tensor cores' instructions, and in f32 with plain multiply-adds.

use half::{bf16, f16};
use rand::RngExt;

use crate::support::{Element, SEEDS, args, assert_near, numbers, pointer, rng, run};

const SHARED_WORDS: usize = 98_304 / 4;

/// Rows of each expert, and the shape of its matrix.
pub(crate) struct Case<'a> {
    pub(crate) n_rows: &'a [usize],
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Rows are gathered from tokens that have so many experts each.
    pub(crate) top_k: Option<usize>,
    pub(crate) has_bias: bool,
    pub(crate) activation: u32,
    pub(crate) has_times: bool,
    pub(crate) has_plus: bool,
    /// What is added is overwritten by the result.
    pub(crate) in_place: bool,
    /// One group, without offsets.
    pub(crate) is_dense: bool,
    pub(crate) n_blocks: usize,
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
pub(crate) struct Operands<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) weight: &'a [T],
    pub(crate) bias: &'a [f32],
    pub(crate) offsets: &'a [u32],
    pub(crate) assignment: &'a [u32],
    pub(crate) times: &'a [T],
    pub(crate) plus: &'a [T],
}

/// `[n_all, n]` in f64.
fn expected<T: Element>(case: &Case<'_>, operands: &Operands<'_, T>) -> Vec<f64> {
    let Operands {
        x,
        weight,
        bias,
        offsets,
        assignment,
        times,
        plus,
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
                let mut value = activate(sum + f64::from(bias), case.activation);
                let at = i * n + col - e * n;
                if case.has_times {
                    value *= times[at].value();
                }
                if case.has_plus {
                    value += plus[at].value();
                }
                expected.push(value);
            }
        }
    }
    expected
}

fn check<T: Element>(case: &Case<'_>) {
    check_with::<T>(case, multiply);
}

fn check_on<T: Element>(kernel: &Kernel, case: &Case<'_>) {
    check_with::<T>(case, |case, operands, seed| {
        multiply_by(kernel, case, operands, seed)
    });
}

/// Checks a kernel that is launched by `multiply`, with one order of threads after the other.
pub(crate) fn check_with<T: Element>(
    case: &Case<'_>,
    multiply: impl Fn(&Case<'_>, &Operands<'_, T>, u64) -> Vec<T>,
) {
    let mut rng = rng(7);
    let (n_experts, n_all) = (case.n_rows.len(), case.n_rows.iter().sum::<usize>());
    let Case { n, k, .. } = *case;
    let n_tokens = n_all.div_ceil(case.top_k.unwrap_or(1)).max(1);
    let x: Vec<T> = numbers(n_tokens.max(n_all) * k, &mut rng);
    let weight: Vec<T> = numbers(n_experts * n * k, &mut rng);
    let bias: Vec<f32> = numbers(n_experts * n, &mut rng);
    let (times, plus): (Vec<T>, Vec<T>) =
        (numbers(n_all * n, &mut rng), numbers(n_all * n, &mut rng));
    let mut offsets = vec![0_u32];
    for rows in case.n_rows {
        offsets.push(offsets[offsets.len() - 1] + *rows as u32);
    }
    let n_assignments = (n_tokens * case.top_k.unwrap_or(1)) as u32;
    let assignment: Vec<u32> = (0..n_all)
        .map(|_| rng.random_range(0..n_assignments))
        .collect();
    let operands = Operands {
        x: &x,
        weight: &weight,
        bias: &bias,
        offsets: &offsets,
        assignment: &assignment,
        times: &times,
        plus: &plus,
    };
    let expected = expected(case, &operands);
    for seed in SEEDS {
        let out = multiply(case, &operands, seed);
        let name = T::NAME;
        let what = format!("{name}, rows {:?}, n {n}, k {k}", case.n_rows);
        // Beyond the last row nothing is written.
        let beyond = &out[n_all * n..];
        assert!(beyond.iter().all(|x| x.value() == 77.0), "{what}");
        assert_near(&out[..n_all * n], &expected, k as f64, &what);
    }
}

fn multiply<T: Element>(case: &Case<'_>, operands: &Operands<'_, T>, seed: u64) -> Vec<T> {
    let kernel = Kernel {
        name: "grouped_gemm",
        threads: 256,
        shared_words: if T::NAME == "f32" { 0 } else { SHARED_WORDS },
        map: None,
    };
    multiply_by(&kernel, case, operands, seed)
}

/// One of the kernels that take these arguments.
pub(crate) struct Kernel {
    /// Without the dtype at its end.
    pub(crate) name: &'static str,
    pub(crate) threads: u32,
    pub(crate) shared_words: usize,
    /// Address of the matrix, rows and columns: it takes a tensor map, too.
    pub(crate) map: Option<[u64; 3]>,
}

/// For a few rows of each expert.
const SHORT: Kernel = Kernel {
    name: "grouped_gemm_short",
    threads: 256,
    shared_words: 81_920 / 4,
    map: None,
};

/// For a few rows, though it takes any number.
const THIN: Kernel = Kernel {
    name: "grouped_gemm_thin",
    threads: 256,
    shared_words: 81_920 / 4,
    map: None,
};

/// What a kernel makes of it, with one row more behind.
pub(crate) fn multiply_by<T: Element>(
    kernel: &Kernel,
    case: &Case<'_>,
    operands: &Operands<'_, T>,
    seed: u64,
) -> Vec<T> {
    let n_all = case.n_rows.iter().sum::<usize>();
    let mut out = vec![T::of(77.0); (n_all + 1) * case.n];
    if case.in_place {
        out[..n_all * case.n].copy_from_slice(operands.plus);
    }
    let mut out_at = out.as_mut_ptr();
    let apart = pointer(case.has_plus, operands.plus).cast_mut();
    let mut plus_at = if case.in_place { out_at } else { apart };
    let mut times_at = pointer(case.has_times, operands.times);
    let (mut x_at, mut weight_at) = (operands.x.as_ptr(), operands.weight.as_ptr());
    let mut bias_at = pointer(case.has_bias, operands.bias);
    let mut offsets_at = pointer(!case.is_dense, operands.offsets);
    let mut assignment_at = pointer(case.top_k.is_some(), operands.assignment);
    // With offsets nobody looks at the number of rows.
    let mut rows = if case.is_dense { n_all as u32 } else { 1 << 20 };
    let (mut experts, mut top_k) = (case.n_rows.len() as u32, case.top_k.unwrap_or(1) as u32);
    let (mut cols, mut depth) = (case.n as u32, case.k as u32);
    let mut activation = case.activation;
    let map = kernel.map.unwrap_or_default();
    let mut map_at = map.as_ptr();
    let mut args = args![
        x_at,
        weight_at,
        bias_at,
        offsets_at,
        assignment_at,
        rows,
        experts,
        top_k,
        cols,
        depth,
        activation,
        times_at,
        plus_at,
        out_at,
        map_at
    ];
    let name = format!("{}_{}", kernel.name, T::NAME);
    let n_args = args.len() - usize::from(kernel.map.is_none());
    run(
        &name,
        [case.n_blocks, 1],
        kernel.threads,
        kernel.shared_words,
        seed,
        &mut args[..n_args],
    );
    out
}

fn check_all(case: &Case<'_>) {
    check::<bf16>(case);
    check::<f16>(case);
    check::<f32>(case);
    check_on::<bf16>(&SHORT, case);
    check_on::<f16>(&SHORT, case);
    // Many rows would only take long.
    if case.n_rows.iter().sum::<usize>() <= 80 {
        check_on::<bf16>(&THIN, case);
        check_on::<f16>(&THIN, case);
    }
}

pub(crate) const PLAIN: Case<'_> = Case {
    n_rows: &[1],
    n: 1,
    k: 8,
    top_k: None,
    has_bias: false,
    activation: 0,
    has_times: false,
    has_plus: false,
    in_place: false,
    is_dense: false,
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

/// Rows that are gathered, and what is done to sums: activations, factors and terms, in place and apart, with
/// offsets and without. Columns in pieces of sixteen bytes, of four, and neither.
pub(crate) fn finishing() -> Vec<Case<'static>> {
    let gathered = [
        (0, 1, 21),
        (1, 2, 24),
        (2, 3, 40),
        (3, 1, 22),
        (4, 2, 288),
        (5, 1, 21),
    ]
    .map(|(activation, top_k, n)| Case {
        n_rows: &[3, 0, 30, 9],
        n,
        k: 40,
        top_k: Some(top_k),
        has_bias: true,
        activation,
        n_blocks: 3,
        ..PLAIN
    });
    let added = [
        (21, true, false, false),
        (22, false, true, false),
        (24, false, true, false),
        (21, true, true, false),
        (40, true, true, true),
        (22, true, true, true),
        (21, false, true, true),
    ]
    .map(|(n, has_times, has_plus, in_place)| Case {
        n_rows: &[3, 0, 30],
        n,
        k: 24,
        has_bias: true,
        activation: 4,
        has_times,
        has_plus,
        in_place,
        n_blocks: 2,
        ..PLAIN
    });
    let dense = [
        (&[0][..], 3, 8, 2),
        (&[67], 65, 72, 9),
        (&[131], 4, 16, 1),
        (&[131], 8, 16, 1),
    ]
    .map(|(n_rows, n, k, n_blocks)| Case {
        n_rows,
        n,
        k,
        has_bias: true,
        has_plus: true,
        is_dense: true,
        n_blocks,
        ..PLAIN
    });
    gathered.into_iter().chain(added).chain(dense).collect()
}

#[test]
fn rows_are_gathered_and_results_are_finished() {
    finishing().iter().for_each(check_all);
}

/// That a row is the same bits alone and among others.
pub(crate) fn check_alone<T: Element>(
    n: usize,
    multiply: impl Fn(&Case<'_>, &Operands<'_, T>, u64) -> Vec<T>,
) {
    let k = 72;
    let mut rng = rng(12);
    let (x, weight): (Vec<T>, Vec<T>) = (numbers(150 * k, &mut rng), numbers(n * k, &mut rng));
    let dense = |n_rows: &[usize], x: &[T]| {
        let case = Case {
            n_rows,
            n,
            k,
            is_dense: true,
            ..PLAIN
        };
        let operands = Operands {
            x,
            weight: &weight,
            bias: &[],
            offsets: &[],
            assignment: &[],
            times: &[],
            plus: &[],
        };
        multiply(&case, &operands, 1)
    };
    let all = dense(&[150], &x);
    for row in [0, 63, 77, 149] {
        let one = dense(&[1], &x[row * k..][..k]);
        let values = |out: &[T]| out.iter().map(|x| x.value()).collect::<Vec<_>>();
        assert_eq!(values(&one[..n]), values(&all[row * n..][..n]), "row {row}");
    }
}

#[test]
fn bits_do_not_depend_on_other_rows() {
    check_alone::<f32>(21, multiply);
    check_alone::<bf16>(21, multiply);
    check_alone::<f16>(21, multiply);
    check_alone::<bf16>(21, |case, operands, seed| {
        multiply_by(&THIN, case, operands, seed)
    });
    check_alone::<f16>(21, |case, operands, seed| {
        multiply_by(&THIN, case, operands, seed)
    });
}

#[test]
fn many_experts_are_passed_on_the_way() {
    // Tiles of the first, the last and of experts between, 32 of which are looked at together.
    let mut n_rows = [0_usize; 100];
    for (e, n) in [
        (0, 1),
        (31, 2),
        (32, 65),
        (33, 1),
        (63, 3),
        (98, 5),
        (99, 2),
    ] {
        n_rows[e] = n;
    }
    for n_blocks in [1, 3, 40] {
        check_all(&Case {
            n_rows: &n_rows,
            n: 3,
            k: 8,
            n_blocks,
            ..PLAIN
        });
    }
}

#[test]
fn warps_share_out_long_sums() {
    for k in [256, 1024, 1032, 2104] {
        check_all(&Case {
            n_rows: &[1, 16],
            n: 18,
            k,
            n_blocks: 2,
            ..PLAIN
        });
    }
}

#[test]
fn sums_in_f32_take_any_shape() {
    for (n_rows, n, k) in [
        (&[2][..], 1, 1),
        (&[64, 0, 65], 66, 31),
        (&[5, 3], 7, 33),
        (&[1], 130, 67),
    ] {
        for top_k in [None, Some(3)] {
            check::<f32>(&Case {
                n_rows,
                n,
                k,
                top_k,
                n_blocks: 2,
                ..PLAIN
            });
        }
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
