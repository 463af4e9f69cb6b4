//! Group normalisation.

use candle_core::{Device, Tensor, Var};
use moeshard_tensor::cpu::Isa;
use moeshard_tensor::linalg::{GroupNorm, GroupStats, Update};
use proptest::prelude::*;

use crate::support::{assert_near, differences, dot, numbers, wide};

const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
struct Shape {
    n_images: usize,
    n_groups: usize,
    n_channels: usize,
    n_pixels: usize,
}

impl Shape {
    fn len(self) -> usize {
        self.n_images * self.n_channels * self.n_pixels
    }
}

fn plain(shape: Shape, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let group_len = shape.n_channels / shape.n_groups * shape.n_pixels;
    let mut out = Vec::new();
    for group in x.chunks(group_len) {
        let n = group_len as f64;
        let mean = group.iter().sum::<f64>() / n;
        let variance = group.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        for x in group {
            let channel = out.len() / shape.n_pixels % shape.n_channels;
            let normal = (x - mean) / (variance + f64::from(EPS)).sqrt();
            out.push(normal * weight[channel] + bias[channel]);
        }
    }
    out
}

/// The result and the gradients of images, weights and bias.
fn run(shape: Shape, isa: Isa, [x, weight, bias, d_out]: [&[f32]; 4]) -> [Vec<f32>; 4] {
    let norm = GroupNorm::new(shape.n_groups, shape.n_channels, shape.n_pixels, EPS);
    let norm = norm.and_then(|norm| norm.with_isa(isa)).expect("a shape");
    let nan = |n: usize| vec![f32::NAN; n];
    let (mut out, mut d_x) = (nan(x.len()), nan(x.len()));
    let (mut d_weight, mut d_bias) = (nan(weight.len()), nan(weight.len()));
    let mut stats = vec![GroupStats::default(); shape.n_images * shape.n_groups];
    norm.forward(x, weight, bias, &mut out, &mut stats)
        .expect("lengths");
    let set = Update::SET;
    norm.backward(
        x,
        weight,
        &stats,
        d_out,
        set,
        &mut d_x,
        &mut d_weight,
        &mut d_bias,
    )
    .expect("lengths");
    [out, d_x, d_weight, d_bias]
}

fn inputs(shape: Shape, seed: u32) -> [Vec<f32>; 4] {
    [
        numbers(shape.len(), seed),
        numbers(shape.n_channels, seed ^ 1),
        numbers(shape.n_channels, seed ^ 2),
        numbers(shape.len(), seed ^ 3),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn results_equal_plain_loops_and_gradients_finite_differences(
        (n_images, n_groups, group, n_pixels) in (1..3_usize, 1..4_usize, 1..4_usize, 2..40_usize),
        seed: u32,
    ) {
        let n_channels = n_groups * group;
        let shape = Shape { n_images, n_groups, n_channels, n_pixels };
        let given = inputs(shape, seed);
        let [x, w, b, d] = given.each_ref().map(|values| wide(values));
        let expected = [
            plain(shape, &x, &w, &b),
            differences(&x, |x| dot(&plain(shape, x, &w, &b), &d)),
            differences(&w, |w| dot(&plain(shape, &x, w, &b), &d)),
            differences(&b, |b| dot(&plain(shape, &x, &w, b), &d)),
        ];
        for isa in Isa::available() {
            let got = run(shape, isa, given.each_ref().map(Vec::as_slice));
            for (got, expected) in got.iter().zip(&expected) {
                assert_near(&format!("{isa} {shape:?}"), got, expected, 2e-4);
            }
        }
    }
}

#[test]
fn the_norm_of_gn_lenet_equals_candle() {
    let shape = Shape {
        n_images: 4,
        n_groups: 2,
        n_channels: 32,
        n_pixels: 225,
    };
    let given = inputs(shape, 5);
    let expected = candle(shape, given.each_ref().map(Vec::as_slice)).expect("candle");
    for isa in Isa::available() {
        let got = run(shape, isa, given.each_ref().map(Vec::as_slice));
        for (got, expected) in got.iter().zip(&expected) {
            assert_near(&format!("{isa}"), got, &wide(expected), 2e-5);
        }
    }
}

fn candle(
    shape: Shape,
    [x, weight, bias, d_out]: [&[f32]; 4],
) -> candle_core::Result<[Vec<f32>; 4]> {
    let device = &Device::Cpu;
    let (n, g, c, pixels) = (
        shape.n_images,
        shape.n_groups,
        shape.n_channels,
        shape.n_pixels,
    );
    let x = Var::from_slice(x, (n, c, pixels), device)?;
    let weight = Var::from_slice(weight, (1, c, 1), device)?;
    let bias = Var::from_slice(bias, (1, c, 1), device)?;
    let groups = x.reshape((n, g, c / g * pixels))?;
    let centred = groups.broadcast_sub(&groups.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let normal = centred.broadcast_div(&(variance + f64::from(EPS))?.sqrt()?)?;
    let normal = normal.reshape((n, c, pixels))?;
    let out = normal.broadcast_mul(&weight)?.broadcast_add(&bias)?;
    let d_out = Tensor::from_slice(d_out, out.shape(), device)?;
    let gradients = (&out * d_out)?.sum_all()?.backward()?;
    let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let gradient = |x: &Var| flat(gradients.get(x).expect("a gradient"));
    Ok([
        flat(&out)?,
        gradient(&x)?,
        gradient(&weight)?,
        gradient(&bias)?,
    ])
}

#[test]
fn large_offsets_do_not_cancel() {
    let norm = GroupNorm::new(1, 1, 64, 0.0).expect("a shape");
    let x: Vec<_> = (0..64).map(|i| 1e4 + (i % 2) as f32).collect();
    let mut out = vec![0.0; 64];
    let mut stats = [GroupStats::default()];
    norm.forward(&x, &[1.0], &[0.0], &mut out, &mut stats)
        .expect("lengths");
    assert!(
        out.iter()
            .enumerate()
            .all(|(i, y)| (y - [-1.0, 1.0][i % 2]).abs() < 1e-3),
        "{out:?}"
    );
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_name() {
    let refused = |n_groups, n_channels| {
        let norm = GroupNorm::new(n_groups, n_channels, 4, EPS);
        norm.expect_err("no shape").to_string()
    };
    assert_eq!(
        refused(2, 5),
        "group norm: channels of whole groups is 5, expected 4"
    );
    assert_eq!(refused(0, 5), "group norm: n_groups is 0, expected 1");
    let norm = GroupNorm::new(1, 2, 4, EPS).expect("a shape");
    let mut stats = [GroupStats::default()];
    let run = norm.forward(&[0.0; 8], &[1.0; 2], &[0.0], &mut [0.0; 8], &mut stats);
    let message = run.expect_err("lengths").to_string();
    assert_eq!(message, "group norm: n_biases is 1, expected 2");
}
