//! Dense layers on the library, where there is one that takes them. On the emulated device a stand-in
//! refuses what cuBLASLt's documentation does, and matrices of 40 columns besides.

#[path = "support/rows.rs"]
mod rows;
mod support;

use moeshard_conformance::{Paths, Scale, run as run_suite};
use moeshard_cuda::driver::emulated::Emulated;
use moeshard_cuda::{CudaConfig, CudaDevice, Gemm};
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::device::{Activation, Device, RouterRule};
use moeshard_tensor::dtype::DType;

use rows::rows;
use support::{experts, matrix};

const N_ROWS: usize = 37;

fn device(driver: Emulated, gemm: Gemm, dtype: DType) -> CudaDevice<Emulated> {
    CudaDevice::with_gemm(CudaConfig { dtype }, gemm, driver, Box::new(Solo)).expect("a device")
}

fn library() -> Emulated {
    Emulated::with_cublaslt().expect("a library")
}

/// A dense layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    n_rows: usize,
    n_in: usize,
    n_out: usize,
    activation: Activation,
    has_bias: bool,
    bias_in: f32,
    has_residual: bool,
}

const LAYER: Layer = Layer {
    n_rows: N_ROWS,
    n_in: 48,
    n_out: 24,
    activation: Activation::Identity,
    has_bias: true,
    bias_in: 8.0,
    has_residual: false,
};

/// What it gives, and how often the library was used.
fn run(device: &CudaDevice<Emulated>, layer: Layer) -> (Vec<f32>, u64) {
    let rows = |width, seed| rows(device, layer.n_rows, width, seed);
    let (x, residual) = (rows(layer.n_in, 3), rows(layer.n_out, 4));
    let weight = device.load_matrix(&[matrix(layer.n_out, layer.n_in, 5)]);
    let weight = weight.expect("a matrix");
    // Eighths are exact in 16 bits, thirds are not.
    let bias: Vec<f32> = (0..layer.n_out).map(|i| i as f32 / layer.bias_in).collect();
    let bias = device.load_vector(&[HostTensor::from_f32([layer.n_out], &bias)]);
    let bias = bias.expect("a bias");
    let before = device.driver().counts().n_library;
    let y = device.linear(
        &x,
        &weight,
        layer.has_bias.then_some(&bias),
        layer.activation,
        layer.has_residual.then_some(&residual),
        None,
    );
    let y = device.to_host(&y.expect("rows")).expect("rows");
    (y, device.driver().counts().n_library - before)
}

fn assert_alike(dtype: DType, layer: Layer, is_used: bool) {
    let own = device(Emulated::new(), Gemm::Own, dtype);
    let with = device(library(), Gemm::Fitting, dtype);
    let (expected, _) = run(&own, layer);
    let (found, n_used) = run(&with, layer);
    assert_eq!(n_used, u64::from(is_used), "{layer:?}");
    assert_eq!(found.len(), layer.n_rows * layer.n_out);
    let tolerance = if dtype == DType::F16 { 2e-3 } else { 1.6e-2 };
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        let is_close = (a - b).abs() <= tolerance * (1.0 + b.abs());
        assert!(is_close, "{layer:?} {i}: {a}, expected {b}");
    }
}

#[test]
fn dense_layers_are_its_own_where_it_takes_them() {
    use Activation::{Gelu, GeluTanh, Identity, Relu, Silu, Tanh};
    for dtype in [DType::BF16, DType::F16] {
        for has_bias in [false, true] {
            for has_residual in [false, true] {
                for activation in [Identity, Relu, GeluTanh, Gelu, Silu, Tanh] {
                    let layer = Layer {
                        activation,
                        has_bias,
                        has_residual,
                        ..LAYER
                    };
                    let is_known = [Identity, Relu, GeluTanh].contains(&activation);
                    // It would add before the activation.
                    let is_used = is_known && (activation == Identity || !has_residual);
                    assert_alike(dtype, layer, is_used);
                }
            }
        }
    }
}

#[test]
fn what_it_does_not_take_runs_on_our_own_kernels() {
    // A width that it refuses; rows that do not begin at 16 bytes; few rows; float32; a bias that 16 bits do
    // not hold.
    let refused = Layer { n_in: 40, ..LAYER };
    assert_alike(DType::BF16, refused, false);
    assert_alike(DType::BF16, Layer { n_out: 23, ..LAYER }, false);
    assert_alike(
        DType::BF16,
        Layer {
            n_rows: 16,
            ..LAYER
        },
        false,
    );
    assert_alike(DType::F32, LAYER, false);
    let inexact = Layer {
        bias_in: 3.0,
        ..LAYER
    };
    assert_alike(DType::BF16, inexact, false);
    // Kernels that are asked for by name.
    for gemm in [Gemm::Own, Gemm::Ampere] {
        assert_eq!(run(&device(library(), gemm, DType::BF16), LAYER).1, 0);
    }
}

#[test]
fn its_products_are_captured_as_ours_are() {
    let device = device(library(), Gemm::Fitting, DType::F16);
    let layer = Layer {
        has_residual: true,
        ..LAYER
    };
    let first = run(&device, layer);
    // Another bias and matrix at each of them: the same plan.
    for _ in 0..3 {
        assert_eq!(run(&device, layer), first);
    }
}

#[test]
fn experts_stay_on_our_own_kernels() {
    let device = device(library(), Gemm::Fitting, DType::BF16);
    let x = rows(&device, N_ROWS, 48, 3);
    let router = device
        .load_exact_matrix(&matrix(3, 48, 5))
        .expect("a router");
    let rule = RouterRule {
        top_k: 1,
        normalize: false,
    };
    let routing = device.route(&x, &router, rule).expect("a routing");
    let experts = device.load_experts(3, experts(3, 48, 24), Activation::Relu);
    let y = device.expert_ffn(&x, &routing, &experts.expect("experts"));
    device.to_host(&y.expect("rows")).expect("rows");
    assert_eq!(device.driver().counts().n_library, 0);
}

#[test]
fn with_it_the_device_computes_what_every_device_must() {
    let dtype = DType::BF16;
    let device = device(library(), Gemm::Fitting, dtype);
    let mut failures = Vec::new();
    run_suite(
        &device,
        dtype,
        (Scale::Small, Paths::Several),
        1,
        &mut |case| {
            if let Err(reason) = &case.outcome {
                failures.push(format!("{}: {reason}", case.name));
            }
        },
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(device.driver().counts().n_library > 10, "hardly used");
}
