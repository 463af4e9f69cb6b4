//! The experts of a layer alone, with routing of our making.

use anyhow::Result;
use moeshard_cuda::driver::Driver;
use moeshard_cuda::{CudaDevice, Experts, Tensor};
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::device::{
    Activation, Device, DeviceError, ExpertSlice, HostMatrix, MatrixLayout, Routing,
};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::report::{Report, Row};
use crate::scale::Scale;
use crate::timing::of_passes;

/// Of the paper's skewed router: so many of the tokens go to a tenth of the experts.
const SKEW: f64 = 0.6;
const SKEWED_EXPERTS: f64 = 0.1;
/// Ranks of which this is one, where a part of every expert is run.
const N_RANKS: usize = 4;

/// Every row of the table about experts.
pub(crate) fn run<R: Driver>(
    device: &CudaDevice<R>,
    scale: &Scale,
    report: &mut Report,
) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let x = numbers(scale.n_tokens * scale.d_model, 1.0, &mut rng);
    let x = device.rows_from_host(&x, scale.d_model)?;
    for &n_experts in scale.n_experts {
        for (part, d_ff) in [("", scale.d_ff), (", one of 4 ranks", scale.d_ff / N_RANKS)] {
            let experts = load(device, n_experts, scale.d_model, d_ff, &mut rng)?;
            for (name, skew) in [("uniform", None), ("skewed", Some(SKEW))] {
                let routing = routing(scale.n_tokens, n_experts, skew, &mut rng);
                let name = format!("experts, E = {n_experts}, {name}{part}");
                report.row(measure(
                    device,
                    scale,
                    &x,
                    &experts,
                    (&routing, d_ff, n_experts),
                    name,
                )?);
            }
        }
    }
    report.row(dense(device, scale, &x, &mut rng)?);
    Ok(())
}

fn measure<R: Driver>(
    device: &CudaDevice<R>,
    scale: &Scale,
    x: &Tensor,
    experts: &Experts<R>,
    (routing, d_ff, n_experts): (&Routing, usize, usize),
    name: String,
) -> Result<Row, DeviceError> {
    let routing = device.routing_from_host(routing, n_experts)?;
    let elapsed = of_passes(device, scale, || {
        let y = device.expert_ffn(x, &routing, experts)?;
        device.finish(&y)
    })?;
    let flops = 4 * scale.n_tokens * scale.d_model * d_ff;
    Ok(Row::new(name, elapsed).flops(flops as f64))
}

/// A dense layer of as many operations, on the same kernels.
fn dense<R: Driver>(
    device: &CudaDevice<R>,
    scale: &Scale,
    x: &Tensor,
    rng: &mut ChaCha8Rng,
) -> Result<Row> {
    let host = numbers(scale.d_ff * scale.d_model, 0.03, rng);
    let tensor = HostTensor::from_f32([scale.d_ff, scale.d_model], &host);
    let layout = MatrixLayout::OutIn;
    let w = device.load_matrix(&[HostMatrix { tensor, layout }])?;
    let elapsed = of_passes(device, scale, || {
        let y = device.linear(x, &w, None, Activation::Relu, None, None)?;
        device.finish(&y)
    })?;
    let flops = 2 * scale.n_tokens * scale.d_model * scale.d_ff;
    let name = format!("dense, {} → {}", scale.d_model, scale.d_ff);
    Ok(Row::new(name, elapsed).flops(flops as f64))
}

fn load<R: Driver>(
    device: &CudaDevice<R>,
    n_experts: usize,
    d_model: usize,
    d_ff: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Experts<R>, DeviceError> {
    // The same numbers for every expert: only their places count.
    let host = numbers(d_ff * d_model, 0.03, rng);
    let matrix = |n_out, n_in| HostMatrix {
        tensor: HostTensor::from_f32([n_out, n_in], &host),
        layout: MatrixLayout::OutIn,
    };
    let slice = |expert_idx| ExpertSlice {
        expert_idx,
        w_in: matrix(d_ff, d_model),
        b_in: None,
        w_out: matrix(d_model, d_ff),
        b_out: None,
    };
    let slices = (0..n_experts).map(slice).collect();
    device.load_experts(n_experts, slices, Activation::Relu)
}

/// One expert a token: all alike, or `skew` of the tokens to a tenth of the experts.
fn routing(n_tokens: usize, n_experts: usize, skew: Option<f64>, rng: &mut ChaCha8Rng) -> Routing {
    let n_popular = ((n_experts as f64 * SKEWED_EXPERTS).ceil() as usize).max(1);
    let mut choose = |_| match skew {
        Some(skew) if rng.random_bool(skew) => rng.random_range(0..n_popular),
        Some(_) => rng.random_range(n_popular.min(n_experts - 1)..n_experts),
        None => rng.random_range(0..n_experts),
    };
    Routing {
        top_k: 1,
        expert_idx: (0..n_tokens).map(|t| choose(t) as u32).collect(),
        gate_weight: vec![1.0; n_tokens],
    }
}

fn numbers(n: usize, most: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-most..most)).collect()
}
