//! Against three loops in f64, on every instruction set.

use proptest::prelude::*;

use super::*;
use crate::linalg::LinalgError;

/// A matrix's layout in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Cols,
    /// Rows with room between them.
    Apart,
    /// Neither rows nor columns contiguous.
    Sparse,
}

impl Layout {
    fn strides(self, n_rows: usize, n_cols: usize) -> (usize, usize) {
        match self {
            Layout::Rows => (n_cols, 1),
            Layout::Cols => (1, n_rows),
            Layout::Apart => (n_cols + 3, 1),
            Layout::Sparse => (2 * n_cols + 1, 2),
        }
    }

    fn len(self, n_rows: usize, n_cols: usize) -> usize {
        let (row, col) = self.strides(n_rows, n_cols);
        match n_rows * n_cols {
            0 => 0,
            _ => (n_rows - 1) * row + (n_cols - 1) * col + 1,
        }
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        Just(Layout::Rows),
        Just(Layout::Cols),
        Just(Layout::Apart),
        Just(Layout::Sparse)
    ]
}

/// Numbers in −1..1 that depend on their place and the seed alone.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    layouts: [Layout; 3],
    alpha: f32,
    beta: f32,
    seed: u32,
}

fn dim() -> impl Strategy<Value = usize> {
    prop_oneof![0..4_usize, 1..40_usize, 40..140_usize]
}

fn steps() -> impl Strategy<Value = usize> {
    prop_oneof![0..4_usize, 1..70_usize, 100..1100_usize, Just(2500)]
}

fn case() -> impl Strategy<Value = Case> {
    let scales = (
        prop_oneof![Just(1.0_f32), Just(-0.3), Just(0.0)],
        prop_oneof![Just(0.0_f32), Just(1.0), Just(0.7)],
    );
    let layouts = [layout(), layout(), layout()];
    (dim(), dim(), steps(), layouts, scales, any::<u32>()).prop_map(
        |(m, n, k, layouts, (alpha, beta), seed)| Case {
            m,
            n,
            k,
            layouts,
            alpha,
            beta,
            seed,
        },
    )
}

fn view(data: &[f32], n_rows: usize, n_cols: usize, layout: Layout) -> MatRef<'_> {
    let (row, col) = layout.strides(n_rows, n_cols);
    MatRef::with_strides(data, n_rows, n_cols, row, col).expect("a view")
}

/// Compares with the plain loops; values between the elements of C must stay.
fn check_case(isa: Isa, case: &Case) {
    let &Case {
        m, n, k, layouts, ..
    } = case;
    let a = numbers(layouts[0].len(m, k), case.seed);
    let b = numbers(layouts[1].len(k, n), case.seed ^ 1);
    let before = match case.beta == 0.0 {
        true => vec![f32::NAN; layouts[2].len(m, n)],
        false => numbers(layouts[2].len(m, n), case.seed ^ 2),
    };
    let mut c = before.clone();
    let (row, col) = layouts[2].strides(m, n);
    let (a, b) = (view(&a, m, k, layouts[0]), view(&b, k, n, layouts[1]));
    let c_view = MatMut::with_strides(&mut c, m, n, row, col).expect("a view");
    let mut gemm = Gemm::with_isa(isa).expect("instructions");
    gemm.run(case.alpha, a, b, case.beta, c_view)
        .expect("shapes");
    let mut expected: Vec<_> = before.iter().map(|&x| f64::from(x)).collect();
    for i in 0..m {
        for j in 0..n {
            let product = |p: usize| {
                let a = a.data[i * a.row_stride + p * a.col_stride];
                f64::from(a) * f64::from(b.data[p * b.row_stride + j * b.col_stride])
            };
            let sum: f64 = (0..k).map(product).sum();
            let c = &mut expected[i * row + j * col];
            let kept = if case.beta == 0.0 {
                0.0
            } else {
                f64::from(case.beta) * *c
            };
            *c = f64::from(case.alpha) * sum + kept;
        }
    }
    let tolerance = 1e-6 * (4.0 + k as f64).sqrt() * 2.0;
    for (idx, (&got, &expected)) in c.iter().zip(&expected).enumerate() {
        let is_near = (f64::from(got) - expected).abs() <= tolerance;
        let is_kept = expected.is_nan() && got.is_nan();
        assert!(
            is_near || is_kept,
            "{isa}, value {idx}: {got}, expected {expected}, {case:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn products_equal_plain_loops_on_every_instruction_set(case in case()) {
        for isa in Isa::available() {
            check_case(isa, &case);
        }
    }
}

#[test]
fn shapes_of_training_equal_plain_loops() {
    use Layout::{Cols, Rows};
    for (m, n, k, layouts) in [
        (128, 10, 784, [Rows, Cols, Rows]),
        (10, 784, 128, [Cols, Rows, Rows]),
        (784, 10, 128, [Cols, Rows, Rows]),
        (13, 10, 784, [Rows, Cols, Rows]),
        (10, 784, 13, [Cols, Rows, Rows]),
        (128, 10, 784, [Rows, Rows, Rows]),
        (2048, 32, 75, [Rows, Rows, Rows]),
        (75, 32, 2048, [Cols, Rows, Rows]),
        (128, 77, 384, [Rows, Rows, Rows]),
        (33, 1, 900, [Rows, Rows, Rows]),
        (1, 33, 900, [Rows, Rows, Cols]),
    ] {
        for isa in Isa::available() {
            for (alpha, beta) in [(1.0, 0.0), (-0.1, 1.0)] {
                let seed = 7;
                check_case(
                    isa,
                    &Case {
                        m,
                        n,
                        k,
                        layouts,
                        alpha,
                        beta,
                        seed,
                    },
                );
            }
        }
    }
}

#[test]
fn alpha_zero_reads_neither_operand() {
    let nan = [f32::NAN; 4];
    let mut c = [1.0, 2.0, 3.0, 4.0];
    let view = |data| MatRef::new(data, 2, 2).expect("a view");
    let out = MatMut::new(&mut c, 2, 2).expect("a view");
    let mut gemm = Gemm::new();
    gemm.run(0.0, view(&nan), view(&nan), 0.5, out)
        .expect("shapes");
    assert_eq!(c, [0.5, 1.0, 1.5, 2.0]);
}

#[test]
fn nan_and_infinity_reach_the_result() {
    for isa in Isa::available() {
        let mut a = vec![1.0; 5 * 100];
        a[2 * 100 + 7] = f32::NAN;
        let b = vec![1.0; 100 * 3];
        let mut c = vec![0.0; 15];
        let (a, b) = (MatRef::new(&a, 5, 100), MatRef::new(&b, 100, 3));
        let out = MatMut::new(&mut c, 5, 3).expect("a view");
        let mut gemm = Gemm::with_isa(isa).expect("instructions");
        gemm.run(1.0, a.expect("a view"), b.expect("a view"), 0.0, out)
            .expect("shapes");
        for (i, x) in c.iter().enumerate() {
            assert_eq!(x.is_nan(), i / 3 == 2, "{isa}: {c:?}");
        }
    }
}

#[test]
fn shapes_that_disagree_are_refused_by_name() {
    let data = [0.0; 6];
    let mut c = [0.0; 6];
    let out = MatMut::new(&mut c, 2, 3).expect("a view");
    let a = MatRef::new(&data, 2, 3).expect("a view");
    let refused = Gemm::new()
        .run(1.0, a, a, 0.0, out)
        .expect_err("3 against 2");
    assert_eq!(refused.to_string(), "gemm: rows of b is 2, expected 3");
    assert!(matches!(
        refused,
        LinalgError::Shape {
            expected: 3,
            got: 2,
            ..
        }
    ));
}

#[test]
fn a_batch_has_the_bits_of_single_products_on_any_number_of_threads() {
    let (m, n, k, n_products) = (10, 100, 37, 23);
    let a = numbers(n_products * m * k, 1);
    let b = numbers(n_products * k * n, 2);
    let a: Vec<_> = a
        .chunks(m * k)
        .map(|a| MatRef::new(a, m, k).expect("a view"))
        .collect();
    let b: Vec<_> = b
        .chunks(k * n)
        .map(|b| MatRef::new(b, k, n).expect("a view"))
        .collect();
    let mut single = vec![1.0; n_products * m * n];
    let mut gemm = Gemm::new();
    for (i, c) in single.chunks_mut(m * n).enumerate() {
        let c = MatMut::new(c, m, n).expect("a view");
        gemm.run(0.5, a[i], b[i], 1.0, c).expect("shapes");
    }
    for n_threads in [1, 2, 5] {
        let threads = Threads::new(n_threads).expect("threads");
        let mut batch = vec![1.0; n_products * m * n];
        let c = batch
            .chunks_mut(m * n)
            .map(|c| MatMut::new(c, m, n).expect("a view"));
        let mut c: Vec<_> = c.collect();
        let mut gemms = GemmBatch::new(n_threads);
        gemms
            .run(&threads, 0.5, &a, &b, 1.0, &mut c)
            .expect("shapes");
        assert_eq!(
            gemms.run(&threads, 0.5, &a[1..], &b, 1.0, &mut c).ok(),
            None
        );
        assert!(
            single
                .iter()
                .zip(&batch)
                .all(|(x, y)| x.to_bits() == y.to_bits())
        );
    }
}
