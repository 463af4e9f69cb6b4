//! The kernels of the CPU device on all cores, at the shapes of Switch-base and
//! nomic-embed-text-v2-moe.
//!
//! `cargo bench -p moeshard-tensor`; criterion's throughput is in multiply-adds ("elements") per
//! second, half the FLOP/s.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moeshard_tensor::checkpoint::HostTensor;
use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, Tensor, peak};
use moeshard_tensor::device::{
    Activation, AttentionShape, Device, ExpertSlice, HostMatrix, MatrixLayout, PositionRule,
    Routing,
};
use moeshard_tensor::dtype::DType;

const D_MODEL: usize = 768;
const D_FF: usize = 3072;

fn device(dtype: DType) -> CpuDevice {
    let config = CpuConfig {
        dtype,
        n_threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        isa: Isa::detect(),
    };
    CpuDevice::new(config, Box::new(Solo)).expect("device")
}

/// Numbers in −1..1 without a pattern.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn matrix(n_out: usize, n_in: usize) -> HostMatrix<'static> {
    HostMatrix {
        tensor: HostTensor::from_f32(vec![n_out, n_in], &numbers(n_out * n_in)),
        layout: MatrixLayout::OutIn,
    }
}

fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for dtype in [DType::F32, DType::BF16] {
        let device = device(dtype);
        // What an inner loop on registers reaches, to hold the rest against.
        let peak = peak::flops_per_second(&device, dtype) / 2.0;
        println!("peak in {dtype}: {:.1} Gelem/s", peak * 1e-9);
        for (m, n_out, n_in) in [
            (1, D_FF, D_MODEL),
            (16, D_FF, D_MODEL),
            (512, D_FF, D_MODEL),
            (512, D_MODEL, D_FF),
            (2048, D_MODEL, D_MODEL),
            (2048, D_FF, D_MODEL),
        ] {
            let w = device.load_matrix(&[matrix(n_out, n_in)]).expect("load");
            let x = Tensor::new(m, n_in, numbers(m * n_in));
            group.throughput(Throughput::Elements((m * n_out * n_in) as u64));
            let id = BenchmarkId::new(dtype.to_string(), format!("{m}x{n_out}x{n_in}"));
            group.bench_function(id, |b| {
                b.iter(|| black_box(device.linear(&x, &w, None, Activation::Identity, None)));
            });
        }
    }
}

fn grouped_ffn(c: &mut Criterion) {
    const N_EXPERTS: usize = 8;
    let mut group = c.benchmark_group("grouped_ffn");
    for dtype in [DType::F32, DType::BF16] {
        let device = device(dtype);
        let slices = (0..N_EXPERTS).map(|expert_idx| ExpertSlice {
            expert_idx,
            w_in: matrix(D_FF, D_MODEL),
            b_in: None,
            w_out: matrix(D_MODEL, D_FF),
            b_out: None,
        });
        let experts = device.load_experts(N_EXPERTS, slices.collect(), Activation::Relu);
        let experts = experts.expect("load");
        for n_tokens in [16, 512, 2048] {
            let x = Tensor::new(n_tokens, D_MODEL, numbers(n_tokens * D_MODEL));
            let even = |token: usize| token % N_EXPERTS;
            // Four of five tokens go to one expert.
            let skewed = |token: usize| if token % 5 < 4 { 0 } else { 1 + token % 7 };
            let spreads: [(&str, &dyn Fn(usize) -> usize); 2] =
                [("even", &even), ("skewed", &skewed)];
            for (name, expert_of) in spreads {
                let routing = Routing {
                    top_k: 1,
                    expert_idx: (0..n_tokens).map(|t| expert_of(t) as u32).collect(),
                    gate_weight: vec![0.5; n_tokens],
                };
                group.throughput(Throughput::Elements((2 * n_tokens * D_FF * D_MODEL) as u64));
                let id = BenchmarkId::new(format!("{dtype}/{name}"), n_tokens);
                group.bench_function(id, |b| {
                    b.iter(|| black_box(device.expert_ffn(&x, &routing, &experts)));
                });
            }
        }
    }
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let device = device(DType::F32);
    let rules = [
        ("plain", PositionRule::None),
        (
            "rotary",
            PositionRule::Rotary {
                base: 10_000.0,
                dim: 64,
            },
        ),
        (
            "t5",
            PositionRule::RelativeBias {
                n_buckets: 32,
                max_distance: 128,
            },
        ),
    ];
    for (name, position) in rules {
        for (n_seqs, n) in [(1, 8), (16, 128), (4, 512), (1, 4096)] {
            let shape = AttentionShape {
                n_heads: 12,
                head_dim: 64,
                scale: 0.125,
                position,
            };
            let qkv = Tensor::new(n_seqs * n, 3 * D_MODEL, numbers(n_seqs * n * 3 * D_MODEL));
            let cu_seqlens: Vec<_> = (0..=n_seqs).map(|i| i * n).collect();
            let bias = (name == "t5").then(|| numbers(32 * 12));
            group.throughput(Throughput::Elements((2 * n_seqs * n * n * D_MODEL) as u64));
            group.bench_function(BenchmarkId::new(name, format!("{n_seqs}x{n}")), |b| {
                b.iter(|| black_box(device.attention(&qkv, &cu_seqlens, &shape, bias.as_ref())));
            });
        }
    }
}

criterion_group!(kernels, gemm, grouped_ffn, attention);
criterion_main!(kernels);
