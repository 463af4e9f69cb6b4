//! The same operations with products on one kernel and on another.

#[path = "support/rows.rs"]
mod rows;
mod support;

use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::{CudaConfig, CudaDevice, Gemm};
use moeshard_tensor::collective::Solo;
use moeshard_tensor::device::{Activation, Device, RouterRule};
use moeshard_tensor::dtype::DType;

use rows::rows;
use support::{experts, matrix, vector};

const D_MODEL: usize = 72;
const HIDDEN: usize = 131;
const N_EXPERTS: usize = 3;
const N_ROWS: usize = 140;

/// Rows after a linear layer, and after a layer of experts.
fn run(gemm: Gemm, dtype: DType, n_rows: usize) -> [Vec<f32>; 2] {
    let config = CudaConfig { dtype };
    let device = CudaDevice::with_gemm(config, gemm, Emulated::new(), Box::new(Solo));
    let device = device.expect("a device");
    let x = rows(&device, n_rows, D_MODEL, 3);
    let weight = device.load_matrix(&[matrix(HIDDEN, D_MODEL, 4)]);
    let weight = weight.expect("a matrix");
    let bias = device.load_vector(&[vector(HIDDEN, 6)]).expect("a bias");
    let linear = device.linear(&x, &weight, Some(&bias), Activation::Gelu, None, None);
    let slices = experts(N_EXPERTS, D_MODEL, HIDDEN);
    let experts = device.load_experts(N_EXPERTS, slices, Activation::Relu);
    let router = device.load_exact_matrix(&matrix(N_EXPERTS, D_MODEL, 5));
    let router = router.expect("a router");
    let rule = RouterRule {
        top_k: 2,
        normalize: true,
    };
    let routing = device.route(&x, &router, rule);
    // What is asked for runs when it is wanted: weights stay until then.
    let experts = experts.expect("experts");
    let y = device.expert_ffn(&x, &routing.expect("a routing"), &experts);
    [linear, y].map(|rows| device.to_host(&rows.expect("rows")).expect("rows"))
}

fn assert_alike(dtype: DType, n_rows: usize, tolerance: f32, gemms: [Gemm; 2]) {
    let [a, b] = gemms.map(|gemm| run(gemm, dtype, n_rows));
    for (a, b) in a.iter().zip(&b) {
        assert!(a.len() >= n_rows * D_MODEL && a.len() == b.len());
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() < tolerance * (1.0 + b.abs()), "{i}: {a}, {b}");
        }
    }
}

#[test]
fn kernels_agree() {
    for (dtype, tolerance) in [(DType::BF16, 0.03), (DType::F16, 0.004)] {
        assert_alike(dtype, N_ROWS, tolerance, [Gemm::Hopper, Gemm::Ampere]);
        // A few rows have a kernel of their own.
        assert_alike(dtype, 7, tolerance, [Gemm::Fitting, Gemm::Ampere]);
    }
}
