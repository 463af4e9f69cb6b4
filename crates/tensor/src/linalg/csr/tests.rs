//! Against plain loops in f64, on every instruction set.

use proptest::prelude::*;

use super::*;

/// Columns and values of each row.
type Rows = Vec<Vec<(u32, f32)>>;

fn csr(n_cols: usize, rows: &Rows) -> Csr {
    let mut starts = vec![0];
    for row in rows {
        starts.push(starts[starts.len() - 1] + row.len());
    }
    let (cols, values) = rows.iter().flatten().copied().unzip();
    Csr::new(n_cols, starts, cols, values).expect("a matrix")
}

/// Numbers in −1..1 that depend on their place alone.
fn numbers(n: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0;
    (0..n).map(number).collect()
}

/// A matrix of 0 to 40 rows and columns, some rows equal, and columns of the dense one.
fn case() -> impl Strategy<Value = (usize, Rows, usize)> {
    (0..40_usize, 0..300_usize).prop_flat_map(|(n_cols, p)| {
        let value = prop_oneof![Just(0.25_f32), -1.0..1.0_f32];
        let row =
            proptest::collection::btree_map(0..n_cols.max(1) as u32, value, 0..=n_cols.min(20));
        let row = row.prop_map(move |row| match n_cols {
            0 => Vec::new(),
            _ => row.into_iter().collect::<Vec<_>>(),
        });
        let distinct = proptest::collection::vec(row, 1..8);
        let rows = (distinct, proptest::collection::vec(0..8_usize, 0..40));
        let rows = rows.prop_map(|(distinct, picks)| {
            let pick = |i: usize| distinct[i % distinct.len()].clone();
            picks.into_iter().map(pick).collect::<Rows>()
        });
        (Just(n_cols), rows, Just(p))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_equal_plain_loops((n_cols, rows, p) in case(), room in 0..5_usize) {
        let threads = Threads::new(2).expect("threads");
        let row_stride = p + room;
        let x = numbers(n_cols * row_stride);
        let x_view = MatRef::with_strides(&x, n_cols, p, row_stride, 1).expect("a view");
        for isa in Isa::available() {
            let csr = csr(n_cols, &rows).with_isa(isa).expect("instructions");
            // What was there must not matter, and what lies between rows must stay.
            let mut out = vec![f32::NAN; rows.len() * row_stride];
            let view = MatMut::with_strides(&mut out, rows.len(), p, row_stride, 1);
            csr.mul(&threads, x_view, view.expect("a view")).expect("shapes");
            for (i, row) in rows.iter().enumerate() {
                for j in 0..row_stride {
                    let got = out[i * row_stride + j];
                    let product = |&(col, value): &(u32, f32)| {
                        f64::from(value) * f64::from(x[col as usize * row_stride + j])
                    };
                    let expected: f64 = row.iter().map(product).sum();
                    let is_near = (f64::from(got) - expected).abs() < 1e-5;
                    prop_assert!(if j < p { is_near } else { got.is_nan() }, "{isa} ({i}, {j})");
                }
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_equal_rows() {
    let n = 50;
    let row = |i: u32| -> Vec<(u32, f32)> {
        (0..n)
            .filter(|j| (i / 5 + j) % 3 == 0)
            .map(|j| (j, 1.0 / (1 + i / 5 + j) as f32))
            .collect()
    };
    let rows: Rows = (0..n).map(row).collect();
    let equal = csr(50, &rows);
    assert_eq!(equal.n_distinct_rows(), 10);
    // Large enough for results to go past the caches.
    for p in [1, 37, 5000, LARGE_BYTES / 200 + 16] {
        let x = numbers(50 * p);
        let x = MatRef::new(&x, 50, p).expect("a view");
        let mut expected = vec![0.0; 50 * p];
        for (i, expected) in expected.chunks_mut(p).enumerate() {
            let alone = csr(50, &vec![rows[i].clone()]);
            let threads = Threads::new(1).expect("threads");
            let out = MatMut::new(expected, 1, p).expect("a view");
            alone.mul(&threads, x, out).expect("shapes");
        }
        for n_threads in [1, 2, 3] {
            let threads = Threads::new(n_threads).expect("threads");
            let mut out = super::super::Scratch::zeroed(50 * p);
            let view = MatMut::new(&mut out, 50, p).expect("a view");
            equal.mul(&threads, x, view).expect("shapes");
            let are_same = out
                .iter()
                .zip(&expected)
                .all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(are_same, "{n_threads} threads, {p} columns");
        }
    }
}

#[test]
fn entries_out_of_place_are_refused_by_row() {
    let refused = |starts: &[usize], cols: &[u32]| {
        let made = Csr::new(3, starts.to_vec(), cols.to_vec(), vec![1.0; cols.len()]);
        made.expect_err("out of place").to_string()
    };
    let column = "expected ascending columns below 3";
    assert_eq!(
        refused(&[0, 1, 2], &[0, 3]),
        format!("row 1 of a sparse matrix names column 3, {column}")
    );
    assert_eq!(
        refused(&[0, 2], &[1, 1]),
        format!("row 0 of a sparse matrix names column 1, {column}")
    );
    assert_eq!(
        refused(&[0, 1], &[0, 1]),
        "row 0 of a sparse matrix ends at entry 1, expected 2"
    );
    assert_eq!(
        refused(&[0, 2, 1, 2], &[0, 1]),
        "row 1 of a sparse matrix ends at entry 1, expected 2 to 2"
    );
    assert_eq!(refused(&[], &[]), "csr: n_row_starts is 0, expected 1");
    assert_eq!(
        refused(&[0], &[0]),
        "csr: n_entries without rows is 1, expected 0"
    );
    assert_eq!(
        refused(&[1, 1], &[0]),
        "csr: first of row_starts is 1, expected 0"
    );
}

#[test]
fn shapes_that_disagree_are_refused_by_name() {
    let csr = csr(2, &vec![vec![(0, 1.0)], vec![(1, 1.0)]]);
    let threads = Threads::new(1).expect("threads");
    let data = [0.0; 12];
    let mut out = [0.0; 12];
    let mut refused = |x: MatRef<'_>, n_rows, n_cols, col_stride| {
        let out = MatMut::with_strides(&mut out, n_rows, n_cols, 2 * n_cols, col_stride);
        let mul = csr.mul(&threads, x, out.expect("a view"));
        mul.expect_err("shapes").to_string()
    };
    let x = |n_rows, n_cols| MatRef::new(&data, n_rows, n_cols).expect("a view");
    assert_eq!(
        refused(x(3, 3), 2, 3, 1),
        "csr product: rows of x is 3, expected 2"
    );
    assert_eq!(
        refused(x(2, 3), 1, 3, 1),
        "csr product: rows of the result is 1, expected 2"
    );
    assert_eq!(
        refused(x(2, 3), 2, 2, 1),
        "csr product: columns of the result is 2, expected 3"
    );
    assert_eq!(
        refused(x(2, 3), 2, 3, 2),
        "csr product: column stride of the result is 2, expected 1"
    );
}
