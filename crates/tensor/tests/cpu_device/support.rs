//! Random numbers, every kernel path, and plain f64 versions that several tests compare with.

use half::bf16;
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, Tensor};
use moeshard_tensor::device::{Activation, HostMatrix, MatrixLayout};
use moeshard_tensor::dtype::DType;

/// Seeded numbers in −1..1 (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    /// Numbers that bf16 and f16 hold exactly.
    pub(crate) fn short(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| (self.next() * 64.0).round() / 64.0)
            .collect()
    }

    pub(crate) fn tensor(&mut self, n_rows: usize, n_cols: usize) -> Tensor {
        Tensor::new(n_rows, n_cols, self.numbers(n_rows * n_cols))
    }
}

pub(crate) fn on_every_path(check: impl Fn(&CpuDevice, &str)) {
    for isa in Isa::available() {
        for n_threads in [1, 3] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let config = CpuConfig {
                    isa,
                    ..CpuConfig::new(dtype, n_threads)
                };
                let device = CpuDevice::new(config, Box::new(Solo)).expect("device");
                check(&device, &format!("{isa}, {dtype}, {n_threads} threads"));
            }
        }
    }
}

/// Whether this path rounds what it multiplies to bf16.
pub(crate) fn multiplies_bf16(path: &str) -> bool {
    path.starts_with("avx512_bf16, bfloat16")
}

/// The numbers that a path multiplies when it is given `x`.
pub(crate) fn multiplied(path: &str, x: &[f32]) -> Vec<f32> {
    let round = |&x| bf16::from_f32(x).to_f32();
    match multiplies_bf16(path) {
        true => x.iter().map(round).collect(),
        false => x.to_vec(),
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_within(3e-6, what, found, expected);
}

#[track_caller]
pub(crate) fn assert_within(limit: f64, what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3, |a: f64, x| a.max(x.abs()));
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(a) - b).abs() / largest;
        assert!(
            error < limit,
            "{what}: element {i} is {a}, expected {b} (relative {error:e})"
        );
    }
}

pub(crate) fn matrix(
    n_out: usize,
    n_in: usize,
    data: &[f32],
    layout: MatrixLayout,
) -> HostMatrix<'static> {
    let tensor = match layout {
        MatrixLayout::OutIn => HostTensor::from_f32(vec![n_out, n_in], data),
        MatrixLayout::InOut => {
            let transposed: Vec<f32> = (0..n_in * n_out)
                .map(|i| data[(i % n_out) * n_in + i / n_out])
                .collect();
            HostTensor::from_f32(vec![n_in, n_out], &transposed)
        }
    };
    HostMatrix { tensor, layout }
}

pub(crate) fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            0.5 * x * (1.0 + (c * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Gelu => {
            // Φ by Simpson's rule on the density.
            let n = 2000;
            let h = x / f64::from(n);
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let inner: f64 = (1..n)
                .map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 })
                .sum();
            x * (0.5 + h / 3.0 * (density(0.0) + inner + density(x)))
        }
    }
}

/// `x · wᵀ` in f64.
pub(crate) fn product(x: &[f32], w: &[f32], n_in: usize) -> Vec<f64> {
    x.chunks_exact(n_in)
        .flat_map(|x| w.chunks_exact(n_in).map(move |w| (x, w)))
        .map(|(x, w)| {
            x.iter()
                .zip(w)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum()
        })
        .collect()
}
