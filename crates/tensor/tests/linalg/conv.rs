//! Convolutions.

use candle_core::{Device, Tensor, Var};
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::linalg::{Conv2d, ConvGradients, ConvShape, LinalgError, Update};
use proptest::prelude::*;

use crate::support::{assert_near, differences, dot, numbers, wide};

/// By seven loops.
fn plain(shape: &ConvShape, images: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let (k, p) = (shape.kernel, shape.padding);
    let n_images = images.len() / shape.image_len();
    let mut out = Vec::new();
    for image in 0..n_images {
        for o in 0..shape.n_out {
            for y in 0..shape.out_height() {
                for x in 0..shape.out_width() {
                    let mut sum = bias[o];
                    for c in 0..shape.n_in {
                        for (ky, kx) in (0..k).flat_map(|ky| (0..k).map(move |kx| (ky, kx))) {
                            let (iy, ix) = (y + ky, x + kx);
                            let is_inside = (p..p + shape.height).contains(&iy)
                                && (p..p + shape.width).contains(&ix);
                            if is_inside {
                                let row = (image * shape.n_in + c) * shape.height + iy - p;
                                sum += images[row * shape.width + ix - p]
                                    * weight[((o * shape.n_in + c) * k + ky) * k + kx];
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

struct Gradients {
    weight: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<f32>,
}

/// Forward and backward on one instruction set, twice: working memory of another batch must not
/// matter.
fn run(
    shape: ConvShape,
    isa: Isa,
    images: &[f32],
    weight: &[f32],
    bias: &[f32],
    d_out: &[f32],
) -> (Vec<f32>, Gradients) {
    let mut conv = Conv2d::with_isa(shape, isa).expect("a shape");
    let mut out = vec![f32::NAN; d_out.len()];
    let nan = |n: usize| vec![f32::NAN; n];
    let mut gradients = Gradients {
        weight: nan(weight.len()),
        bias: nan(bias.len()),
        x: nan(images.len()),
    };
    for n_images in [1, images.len() / shape.image_len()] {
        let images = &images[..n_images * shape.image_len()];
        let n_results = n_images * shape.out_len();
        conv.forward(images, weight, bias, &mut out[..n_results])
            .expect("lengths");
        let into = ConvGradients {
            weight: &mut gradients.weight,
            bias: &mut gradients.bias,
            x: Some(&mut gradients.x[..images.len()]),
        };
        conv.backward(images, weight, &d_out[..n_results], Update::SET, into)
            .expect("lengths");
    }
    (out, gradients)
}

fn shape() -> impl Strategy<Value = ConvShape> {
    let dims = (1..4_usize, 1..6_usize, 1..20_usize, 1..20_usize, 1..6_usize);
    dims.prop_flat_map(|(n_in, n_out, height, width, kernel)| {
        (0..kernel).prop_map(move |padding| ConvShape {
            n_in,
            n_out,
            height: height.max(kernel),
            width: width.max(kernel),
            kernel,
            padding,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn convolutions_equal_plain_loops(shape in shape(), n_images in 1..4_usize, seed: u32) {
        let images = numbers(n_images * shape.image_len(), seed);
        let weight = numbers(shape.weight_len(), seed ^ 1);
        let bias = numbers(shape.n_out, seed ^ 2);
        let d_out = numbers(n_images * shape.out_len(), seed ^ 3);
        let expected = plain(&shape, &wide(&images), &wide(&weight), &wide(&bias));
        for isa in Isa::available() {
            let (out, _) = run(shape, isa, &images, &weight, &bias, &d_out);
            assert_near(&format!("{isa} {shape:?}"), &out, &expected, 1e-5);
        }
    }
}

/// Shapes that meet kernels of one value, no padding, most padding, single pixels, and images that
/// share a block.
const SHAPES: [ConvShape; 5] = [
    conv_shape(2, 3, 5, 4, 3, 1),
    conv_shape(3, 2, 4, 6, 1, 0),
    conv_shape(1, 1, 2, 2, 3, 2),
    conv_shape(2, 2, 7, 5, 2, 1),
    conv_shape(1, 4, 5, 5, 5, 0),
];

const fn conv_shape(
    n_in: usize,
    n_out: usize,
    height: usize,
    width: usize,
    kernel: usize,
    padding: usize,
) -> ConvShape {
    ConvShape {
        n_in,
        n_out,
        height,
        width,
        kernel,
        padding,
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for shape in SHAPES {
        let images = numbers(3 * shape.image_len(), 1);
        let weight = numbers(shape.weight_len(), 2);
        let bias = numbers(shape.n_out, 3);
        let d_out = numbers(3 * shape.out_len(), 4);
        let (x, w, b, d) = (wide(&images), wide(&weight), wide(&bias), wide(&d_out));
        let d_x = differences(&x, |x| dot(&plain(&shape, x, &w, &b), &d));
        let d_w = differences(&w, |w| dot(&plain(&shape, &x, w, &b), &d));
        let d_b = differences(&b, |b| dot(&plain(&shape, &x, &w, b), &d));
        for isa in Isa::available() {
            let (_, gradients) = run(shape, isa, &images, &weight, &bias, &d_out);
            let name = format!("{isa} {shape:?}");
            assert_near(&name, &gradients.x, &d_x, 1e-5);
            assert_near(&name, &gradients.weight, &d_w, 1e-5);
            assert_near(&name, &gradients.bias, &d_b, 1e-5);
        }
    }
}

#[test]
fn convolutions_of_gn_lenet_equal_candle() {
    let layers = [
        conv_shape(3, 32, 32, 32, 5, 2),
        conv_shape(32, 32, 15, 15, 5, 2),
        conv_shape(32, 64, 7, 7, 5, 2),
    ];
    for shape in layers {
        const N_IMAGES: usize = 5;
        let images = numbers(N_IMAGES * shape.image_len(), 1);
        let weight = numbers(shape.weight_len(), 2);
        let bias = numbers(shape.n_out, 3);
        let d_out = numbers(N_IMAGES * shape.out_len(), 4);
        let expected = candle(&shape, N_IMAGES, [&images, &weight, &bias, &d_out]).expect("candle");
        for isa in Isa::available() {
            let (out, gradients) = run(shape, isa, &images, &weight, &bias, &d_out);
            let got = [&out, &gradients.x, &gradients.weight, &gradients.bias];
            for ((name, got), expected) in ["out", "images", "weights", "bias"]
                .iter()
                .zip(got)
                .zip(&expected)
            {
                assert_near(
                    &format!("{isa} {name} {shape:?}"),
                    got,
                    &wide(expected),
                    1e-5,
                );
            }
        }
    }
}

/// The result and the gradients of images, weights and bias.
fn candle(
    shape: &ConvShape,
    n_images: usize,
    [images, weight, bias, d_out]: [&[f32]; 4],
) -> candle_core::Result<[Vec<f32>; 4]> {
    let (k, device) = (shape.kernel, &Device::Cpu);
    let images = (n_images, shape.n_in, shape.height, shape.width, images);
    let x = Var::from_slice(images.4, (images.0, images.1, images.2, images.3), device)?;
    let w = Var::from_slice(weight, (shape.n_out, shape.n_in, k, k), device)?;
    let b = Var::from_slice(bias, (1, shape.n_out, 1, 1), device)?;
    let out = x.conv2d(&w, shape.padding, 1, 1, 1)?.broadcast_add(&b)?;
    let d_out = Tensor::from_slice(d_out, out.shape(), device)?;
    let gradients = (&out * d_out)?.sum_all()?.backward()?;
    let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let gradient = |x: &Var| flat(gradients.get(x).expect("a gradient"));
    Ok([flat(&out)?, gradient(&x)?, gradient(&w)?, gradient(&b)?])
}

#[test]
fn gradients_are_scaled_and_added_as_asked() {
    let shape = SHAPES[0];
    let images = numbers(2 * shape.image_len(), 1);
    let weight = numbers(shape.weight_len(), 2);
    let bias = numbers(shape.n_out, 3);
    let d_out = numbers(2 * shape.out_len(), 4);
    let (_, set) = run(shape, Isa::detect(), &images, &weight, &bias, &d_out);
    let (mut d_weight, mut d_bias) = (vec![2.0; weight.len()], vec![3.0; bias.len()]);
    let into = ConvGradients {
        weight: &mut d_weight,
        bias: &mut d_bias,
        x: None,
    };
    let update = Update {
        alpha: -0.5,
        beta: 0.25,
    };
    let mut conv = Conv2d::new(shape).expect("a shape");
    conv.backward(&images, &weight, &d_out, update, into)
        .expect("lengths");
    let scaled = |xs: &[f32], before: f64| -> Vec<f64> {
        xs.iter()
            .map(|&x| 0.25 * before - 0.5 * f64::from(x))
            .collect()
    };
    assert_near("weights", &d_weight, &scaled(&set.weight, 2.0), 1e-6);
    assert_near("bias", &d_bias, &scaled(&set.bias, 3.0), 1e-6);
}

#[test]
fn impossible_shapes_are_refused_by_name() {
    let refused = |shape: ConvShape| Conv2d::new(shape).expect_err("impossible").to_string();
    assert_eq!(
        refused(conv_shape(1, 1, 4, 4, 3, 3)),
        "convolution: padding below the kernel is 3, expected 2"
    );
    assert_eq!(
        refused(conv_shape(1, 1, 4, 4, 7, 1)),
        "convolution: height is 4, expected 5"
    );
    assert_eq!(
        refused(conv_shape(0, 1, 4, 4, 3, 1)),
        "convolution: n_in is 0, expected 1"
    );
    assert_eq!(
        refused(conv_shape(1, 1, 4, 4, 0, 0)),
        "convolution: kernel is 0, expected 1"
    );
}

#[test]
fn lengths_that_disagree_are_refused_by_name() {
    let shape = SHAPES[0];
    let mut conv = Conv2d::new(shape).expect("a shape");
    let (images, weight) = (numbers(40, 1), numbers(shape.weight_len(), 2));
    let mut out = vec![0.0; shape.out_len()];
    let mut refused = |images: &[f32], weight: &[f32], bias: &[f32]| {
        let run = conv.forward(images, weight, bias, &mut out);
        run.expect_err("lengths").to_string()
    };
    assert_eq!(
        refused(&images[1..], &weight, &[0.0; 3]),
        "convolution: values of whole images is 39, expected 0"
    );
    assert_eq!(
        refused(&images, &weight[1..], &[0.0; 3]),
        "convolution: n_weights is 53, expected 54"
    );
    assert_eq!(
        refused(&images, &weight, &[0.0; 2]),
        "convolution: n_biases is 2, expected 3"
    );
    let error = conv.forward(&images, &weight, &[0.0; 3], &mut []);
    assert!(matches!(
        error,
        Err(LinalgError::Shape {
            expected: 60,
            got: 0,
            ..
        })
    ));
}
