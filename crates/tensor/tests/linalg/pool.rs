//! Max pooling.

use moeshard_tensor::cpu::Isa;
use moeshard_tensor::linalg::MaxPool2d;
use proptest::prelude::*;

use crate::support::{assert_near, differences, dot, numbers, wide};

#[derive(Clone, Copy, Debug)]
struct Shape {
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
}

fn plain(shape: Shape, x: &[f64]) -> Vec<f64> {
    let Shape {
        height,
        width,
        kernel,
        stride,
    } = shape;
    let mut out = Vec::new();
    for plane in x.chunks(height * width) {
        for y in (0..=height - kernel).step_by(stride) {
            for x in (0..=width - kernel).step_by(stride) {
                let rows = y..y + kernel;
                let window = rows.flat_map(|y| &plane[y * width + x..y * width + x + kernel]);
                out.push(window.copied().fold(f64::NEG_INFINITY, f64::max));
            }
        }
    }
    out
}

fn shape() -> impl Strategy<Value = Shape> {
    let dims = (1..5_usize, 1..4_usize, 0..40_usize, 0..40_usize);
    dims.prop_map(|(kernel, stride, height, width)| Shape {
        height: kernel + height,
        width: kernel + width,
        kernel,
        stride,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn results_equal_plain_loops(shape in shape(), n_planes in 0..4_usize, seed: u32) {
        let x = numbers(n_planes * shape.height * shape.width, seed);
        let expected = plain(shape, &wide(&x));
        for isa in Isa::available() {
            let pool = MaxPool2d::new(shape.height, shape.width, shape.kernel, shape.stride);
            let pool = pool.and_then(|pool| pool.with_isa(isa)).expect("a shape");
            let mut out = vec![f32::NAN; n_planes * pool.out_len()];
            let mut places = vec![u32::MAX; out.len()];
            pool.forward(&x, &mut out, &mut places).expect("lengths");
            prop_assert_eq!(&wide(&out), &expected);
            for (i, (&out, &place)) in out.iter().zip(&places).enumerate() {
                let plane = i / pool.out_len();
                prop_assert_eq!(out, x[plane * shape.height * shape.width + place as usize]);
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for (height, width, kernel, stride) in [(9, 7, 3, 2), (8, 8, 2, 2), (5, 6, 3, 1)] {
        let shape = Shape {
            height,
            width,
            kernel,
            stride,
        };
        // All different, and farther apart than the step of a difference.
        let n = 2 * height * width;
        let x: Vec<_> = (0..n).map(|i| (i * 37 % n) as f32 / 8.0).collect();
        let pool = MaxPool2d::new(height, width, kernel, stride).expect("a shape");
        let d_out = numbers(2 * pool.out_len(), 3);
        let (mut out, mut places) = (vec![0.0; d_out.len()], vec![0; d_out.len()]);
        let mut d_x = vec![f32::NAN; n];
        pool.forward(&x, &mut out, &mut places).expect("lengths");
        pool.backward(&d_out, &places, &mut d_x).expect("lengths");
        let expected = differences(&wide(&x), |x| dot(&plain(shape, x), &wide(&d_out)));
        assert_near(&format!("{shape:?}"), &d_x, &expected, 1e-6);
    }
}

#[test]
fn the_first_of_equals_is_taken_and_nan_is_the_largest() {
    for isa in Isa::available() {
        let pool = MaxPool2d::new(3, 35, 3, 2).and_then(|pool| pool.with_isa(isa));
        let pool = pool.expect("a shape");
        let mut x = vec![1.0; 3 * 35];
        let (mut out, mut places) = ([0.0; 17], [9; 17]);
        pool.forward(&x, &mut out, &mut places).expect("lengths");
        assert!(
            places
                .iter()
                .enumerate()
                .all(|(i, &place)| place == 2 * i as u32),
            "{isa}"
        );
        x[35 + 4] = f32::NAN;
        pool.forward(&x, &mut out, &mut places).expect("lengths");
        for (i, (out, place)) in out.iter().zip(places).enumerate() {
            let is_met = (1..=2).contains(&i);
            assert_eq!(out.is_nan(), is_met, "{isa} {i}");
            assert_eq!(place == 39, is_met, "{isa} {i}");
        }
    }
}

#[test]
fn windows_and_places_that_do_not_fit_are_refused_by_name() {
    let refused = |height, kernel, stride| {
        let pool = MaxPool2d::new(height, 4, kernel, stride);
        pool.expect_err("no shape").to_string()
    };
    assert_eq!(refused(2, 3, 2), "max pooling: height is 2, expected 3");
    assert_eq!(refused(4, 0, 2), "max pooling: kernel is 0, expected 1");
    assert_eq!(refused(4, 2, 0), "max pooling: stride is 0, expected 1");
    let pool = MaxPool2d::new(2, 2, 2, 1).expect("a shape");
    let far = pool
        .backward(&[1.0], &[4], &mut [0.0; 4])
        .expect_err("outside");
    assert_eq!(
        far.to_string(),
        "max pooling: place in a plane is 4, expected 3"
    );
}
