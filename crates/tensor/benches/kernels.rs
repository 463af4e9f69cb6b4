//! The kernels of the CPU device on all cores, at the shapes of Switch-base and
//! nomic-embed-text-v2-moe.
//!
//! `cargo bench -p moeshard-tensor`; criterion's throughput is in multiply-adds ("elements") per
//! second, half the FLOP/s.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moeshard_tensor::cpu::{Tensor, peak};
use moeshard_tensor::device::{Activation, AttentionShape, Device, PositionRule};
use moeshard_tensor::dtype::DType;

mod support;

use support::{D_FF, D_MODEL, device, experts, matrix, numbers, routing};

fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for dtype in [DType::F32, DType::BF16] {
        let device = device(dtype);
        // What an inner loop on registers reaches, to hold the rest against.
        let peak = peak::flops_per_second(&device, dtype, peak::DURATION) / 2.0;
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
                b.iter(|| black_box(device.linear(&x, &w, None, Activation::Identity, None, None)));
            });
        }
    }
}

fn grouped_ffn(c: &mut Criterion) {
    let mut group = c.benchmark_group("grouped_ffn");
    for dtype in [DType::F32, DType::BF16] {
        let device = device(dtype);
        let experts = experts(&device);
        for n_tokens in [16, 512, 2048] {
            let x = Tensor::new(n_tokens, D_MODEL, numbers(n_tokens * D_MODEL));
            for (name, is_skewed) in [("even", false), ("skewed", true)] {
                let routing = routing(n_tokens, is_skewed);
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
            let mut qkv = Tensor::new(n_seqs * n, 3 * D_MODEL, numbers(n_seqs * n * 3 * D_MODEL));
            let cu_seqlens: Vec<_> = (0..=n_seqs).map(|i| i * n).collect();
            let bias = (name == "t5").then(|| numbers(32 * 12));
            group.throughput(Throughput::Elements((2 * n_seqs * n * n * D_MODEL) as u64));
            group.bench_function(BenchmarkId::new(name, format!("{n_seqs}x{n}")), |b| {
                b.iter(|| {
                    black_box(device.attention(&mut qkv, &cu_seqlens, &shape, bias.as_ref()))
                });
            });
        }
    }
}

criterion_group!(kernels, gemm, grouped_ffn, attention);
criterion_main!(kernels);
