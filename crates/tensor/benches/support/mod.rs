//! Devices and weights at the shapes of Switch-base and nomic-embed-text-v2-moe.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Experts};
use moeshard_tensor::device::{Activation, Device, ExpertSlice, HostMatrix, MatrixLayout, Routing};
use moeshard_tensor::dtype::DType;

pub(crate) const D_MODEL: usize = 768;
pub(crate) const D_FF: usize = 3072;
const N_EXPERTS: usize = 8;

pub(crate) fn device(dtype: DType) -> CpuDevice {
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let config = CpuConfig::new(dtype, n_threads);
    CpuDevice::new(config, Box::new(Solo)).expect("device")
}

/// Numbers in −1..1 without a pattern.
pub(crate) fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn matrix(n_out: usize, n_in: usize) -> HostMatrix<'static> {
    HostMatrix {
        tensor: HostTensor::from_f32(vec![n_out, n_in], &numbers(n_out * n_in)),
        layout: MatrixLayout::OutIn,
    }
}

/// The experts of one layer.
pub(crate) fn experts(device: &CpuDevice) -> Experts {
    let slices = (0..N_EXPERTS).map(|expert_idx| ExpertSlice {
        expert_idx,
        w_in: matrix(D_FF, D_MODEL),
        b_in: None,
        w_out: matrix(D_MODEL, D_FF),
        b_out: None,
    });
    let experts = device.load_experts(N_EXPERTS, slices.collect(), Activation::Relu);
    experts.expect("load")
}

/// One expert a token: each as many, or four tokens of five to the same.
pub(crate) fn routing(n_tokens: usize, is_skewed: bool) -> Routing {
    let expert_of = |token: usize| match (is_skewed, token % 5 < 4) {
        (false, _) => token % N_EXPERTS,
        (true, true) => 0,
        (true, false) => 1 + token % (N_EXPERTS - 1),
    };
    Routing {
        top_k: 1,
        expert_idx: (0..n_tokens).map(|t| expert_of(t) as u32).collect(),
        gate_weight: vec![0.5; n_tokens],
    }
}
