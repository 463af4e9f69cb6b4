//! How much of the machine's peak the matrix products reach, on all cores.
//!
//! `cargo bench -p moeshard-tensor --bench roofline`; `ROUNDS=N` (default 9). In each round the
//! peak and every product are measured one after the other, the best of some 60 ms each, because
//! the pace of a shared machine changes from second to second. What is printed is the median of the
//! rounds' shares, and the lowest and highest of them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use moeshard_tensor::cpu::{CpuDevice, Experts, Matrix, Tensor, peak};
use moeshard_tensor::device::{Activation, Device, Routing};
use moeshard_tensor::dtype::DType;

mod support;

use support::{D_FF, D_MODEL, device, experts, matrix, numbers, routing};

/// How long each product is repeated in a round.
const DURATION: Duration = Duration::from_millis(60);

/// The products of a dtype.
struct Products {
    device: CpuDevice,
    dtype: DType,
    /// By name, with the rows that go in.
    matrices: Vec<(String, Tensor, Matrix)>,
    experts: Experts,
    tokens: Tensor,
    routings: [(&'static str, Routing); 2],
}

impl Products {
    fn new(dtype: DType) -> Self {
        const N_TOKENS: usize = 512;
        let device = device(dtype);
        let shapes = [
            (N_TOKENS, D_FF, D_MODEL),
            (N_TOKENS, D_MODEL, D_FF),
            (2048, D_FF, D_MODEL),
            (2048, D_MODEL, D_FF),
            (2048, 3 * D_MODEL, D_MODEL),
            (2048, D_MODEL, D_MODEL),
        ];
        let matrices = shapes.map(|(m, n, k)| {
            let w = device.load_matrix(&[matrix(n, k)]).expect("load");
            (
                format!("{m} x {n} x {k}"),
                Tensor::new(m, k, numbers(m * k)),
                w,
            )
        });
        Self {
            dtype,
            matrices: matrices.into(),
            experts: experts(&device),
            tokens: Tensor::new(N_TOKENS, D_MODEL, numbers(N_TOKENS * D_MODEL)),
            routings: [
                ("experts, even", routing(N_TOKENS, false)),
                ("experts, skewed", routing(N_TOKENS, true)),
            ],
            device,
        }
    }

    fn names(&self) -> Vec<String> {
        let matrices = self.matrices.iter().map(|(name, ..)| name.clone());
        let experts = self.routings.iter().map(|(name, _)| (*name).to_owned());
        matrices.chain(experts).collect()
    }

    /// The share of the peak that each product reaches.
    fn round(&self) -> Vec<f64> {
        let device = &self.device;
        let peak = || peak::flops_per_second(device, self.dtype, DURATION);
        let mut shares = Vec::new();
        for (_, x, w) in &self.matrices {
            let run = || device.linear(x, w, None, Activation::Identity, None, None);
            let n_rows = x.as_slice().len() / w.n_in();
            let flops = (2 * n_rows * w.n_in() * w.n_out()) as f64;
            shares.push(flops / shortest(run) / peak());
        }
        for (_, routing) in &self.routings {
            let run = || device.expert_ffn(&self.tokens, routing, &self.experts);
            let flops = (4 * self.tokens.as_slice().len() * D_FF) as f64;
            shares.push(flops / shortest(run) / peak());
        }
        shares
    }
}

/// Seconds of the shortest of repeated runs.
fn shortest<T>(run: impl Fn() -> T) -> f64 {
    let start = Instant::now();
    let mut shortest = f64::INFINITY;
    while start.elapsed() < DURATION {
        let start = Instant::now();
        black_box(run());
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    shortest
}

fn print(name: &str, mut shares: Vec<f64>) {
    shares.sort_by(f64::total_cmp);
    let percent = |i: usize| 100.0 * shares[i];
    let last = shares.len() - 1;
    let (median, low, high) = (percent(last / 2), percent(0), percent(last));
    println!("{name:24} {median:5.1} %   {low:5.1} .. {high:5.1}");
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok();
    let n_rounds = rounds.map_or(9, |n| n.parse().expect("ROUNDS is a number"));
    for dtype in [DType::F32, DType::BF16] {
        let products = Products::new(dtype);
        let rounds: Vec<_> = (0..n_rounds).map(|_| products.round()).collect();
        println!("\n{dtype}, share of the peak: median, lowest .. highest of {n_rounds} rounds");
        let names = products.names();
        let n = names.len();
        for (i, name) in names.iter().enumerate() {
            print(name, rounds.iter().map(|round| round[i]).collect());
        }
        let ratios = rounds.iter().map(|round| round[n - 1] / round[n - 2]);
        print("skewed / even", ratios.collect());
    }
}
