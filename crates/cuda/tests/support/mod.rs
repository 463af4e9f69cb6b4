//! Weights that several tests load.

use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{ExpertSlice, HostMatrix, MatrixLayout};

/// Numbers without a pattern, of which `seed` chooses.
pub(crate) fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7 + seed * 31) as f32 * 0.618_034).fract() - 0.5;
    (0..n).map(number).collect()
}

pub(crate) fn matrix(n_out: usize, n_in: usize, seed: usize) -> HostMatrix<'static> {
    HostMatrix {
        tensor: HostTensor::from_f32([n_out, n_in], &numbers(n_out * n_in, seed)),
        layout: MatrixLayout::OutIn,
    }
}

pub(crate) fn vector(n: usize, seed: usize) -> HostTensor<'static> {
    HostTensor::from_f32([n], &numbers(n, seed))
}

/// Experts with a bias before their activation.
pub(crate) fn experts(
    n_experts: usize,
    d_model: usize,
    n_hidden: usize,
) -> Vec<ExpertSlice<'static>> {
    let slice = |expert_idx| ExpertSlice {
        expert_idx,
        w_in: matrix(n_hidden, d_model, expert_idx),
        b_in: Some(vector(n_hidden, expert_idx)),
        w_out: matrix(d_model, n_hidden, expert_idx + 1),
        b_out: None,
    };
    (0..n_experts).map(slice).collect()
}
