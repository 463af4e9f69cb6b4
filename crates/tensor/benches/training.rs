//! What training multiplies, as a share of what one core can do.
//!
//! `cargo bench -p moeshard-tensor --bench training`; `ROUNDS=N` (default 7). In each round the peak
//! of one core and every operation are measured one after the other, the best of some 20 ms each,
//! because the pace of a shared machine changes from second to second. What is printed is the best
//! time, and the median of the rounds' shares with the lowest and highest of them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, peak};
use moeshard_tensor::dtype::DType;
use moeshard_tensor::linalg::{Gemm, MatMut, MatRef, Scratch};

/// How long each operation is repeated in a round.
const DURATION: Duration = Duration::from_millis(20);

/// One operation, with the floating-point operations that it cannot do without.
struct Op {
    name: String,
    flops: f64,
    run: Box<dyn FnMut()>,
    seconds: Vec<f64>,
    shares: Vec<f64>,
}

impl Op {
    fn new(name: impl Into<String>, flops: usize, run: impl FnMut() + 'static) -> Self {
        Self {
            name: name.into(),
            flops: flops as f64,
            run: Box::new(run),
            seconds: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Measures the operation and then the peak.
    fn measure(&mut self, device: &CpuDevice) {
        let seconds = shortest(&mut self.run);
        let peak = peak::flops_per_second(device, DType::F32, DURATION);
        self.seconds.push(seconds);
        self.shares.push(self.flops / seconds / peak);
    }

    fn print(&mut self) {
        self.seconds.sort_by(f64::total_cmp);
        self.shares.sort_by(f64::total_cmp);
        let percent = |i: usize| 100.0 * self.shares[i];
        let last = self.shares.len() - 1;
        println!(
            "{:44} {:9.1} us {:7.1} GFLOP/s {:5.1} %   {:5.1} .. {:5.1}",
            self.name,
            1e6 * self.seconds[0],
            1e-9 * self.flops / self.seconds[0],
            percent(last / 2),
            percent(0),
            percent(last),
        );
    }
}

/// Numbers in −1..1 without a pattern, aligned as a trainer's buffers are.
fn numbers(n: usize) -> Scratch {
    let mut state = 1_u32;
    let mut numbers = Scratch::zeroed(n);
    for x in numbers.iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
    }
    numbers
}

/// Seconds of the shortest of repeated runs.
fn shortest(run: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    let mut shortest = f64::INFINITY;
    while start.elapsed() < DURATION {
        let start = Instant::now();
        run();
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    shortest
}

/// Which operands are stored transposed.
#[derive(Clone, Copy)]
enum Form {
    Nn,
    Nt,
    Tn,
}

/// `c = alpha · op(a) · op(b) + beta · c` with `[m, k]` times `[k, n]`.
fn product(isa: Isa, name: &str, form: Form, (m, n, k): (usize, usize, usize), beta: f32) -> Op {
    let (a, b) = (numbers(m * k), numbers(k * n));
    let mut c = Scratch::zeroed(m * n);
    let mut gemm = Gemm::with_isa(isa).expect("instructions");
    let form_name = match form {
        Form::Nn => "NN",
        Form::Nt => "NT",
        Form::Tn => "TN",
    };
    let name = format!("{name}, {form_name} {m} x {n} x {k}");
    Op::new(name, 2 * m * n * k, move || {
        let a = match form {
            Form::Tn => MatRef::new(&a, k, m).map(MatRef::t),
            _ => MatRef::new(&a, m, k),
        };
        let b = match form {
            Form::Nt => MatRef::new(&b, n, k).map(MatRef::t),
            _ => MatRef::new(&b, k, n),
        };
        let out = MatMut::new(&mut c, m, n).expect("a view");
        let (a, b) = (a.expect("a view"), b.expect("a view"));
        gemm.run(1e-3, a, b, beta, out).expect("shapes");
        black_box(&mut c);
    })
}

/// The products of the simulator's models.
fn products(isa: Isa) -> Vec<Op> {
    use Form::{Nn, Nt, Tn};
    let mut ops = Vec::new();
    for batch in [128, 20, 13] {
        ops.push(product(isa, "linear forward", Nt, (batch, 10, 784), 0.0));
        ops.push(product(isa, "linear gradient", Tn, (10, 784, batch), 1.0));
    }
    ops.push(product(isa, "MLP forward 1", Nt, (32, 128, 784), 0.0));
    ops.push(product(isa, "MLP forward 2", Nt, (32, 10, 128), 0.0));
    ops.push(product(isa, "MLP hidden gradient", Nn, (32, 128, 10), 0.0));
    ops.push(product(isa, "MLP gradient 2", Tn, (10, 128, 32), 1.0));
    ops.push(product(isa, "MLP gradient 1", Tn, (128, 784, 32), 1.0));
    for (name, pixels, k, n) in [
        ("conv 1", 20 * 1024, 75, 32),
        ("conv 2", 20 * 225, 800, 32),
        ("conv 3", 20 * 49, 800, 64),
    ] {
        let name = |what: &str| format!("{name} {what}");
        ops.push(product(isa, &name("forward"), Nn, (pixels, n, k), 0.0));
        ops.push(product(isa, &name("weights"), Tn, (k, n, pixels), 1.0));
        ops.push(product(isa, &name("columns"), Nt, (pixels, k, n), 0.0));
    }
    ops.push(product(isa, "head forward", Nn, (128, 77, 384), 0.0));
    ops.push(product(isa, "head forward", Nt, (128, 77, 384), 0.0));
    ops.push(product(isa, "head gradient", Tn, (77, 384, 128), 1.0));
    for form in [Nn, Nt, Tn] {
        ops.push(product(isa, "square", form, (512, 512, 512), 0.0));
    }
    ops
}

fn one_core(isa: Isa) -> CpuDevice {
    let mut config = CpuConfig::new(DType::F32, 1);
    config.isa = isa;
    CpuDevice::new(config, Box::new(Solo)).expect("device")
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok();
    let n_rounds = rounds.map_or(7, |n| n.parse().expect("ROUNDS is a number"));
    let only = std::env::var("ONLY").unwrap_or_default();
    for isa in Isa::available() {
        // The same products of f32 as the set without pairs of bf16.
        if isa == Isa::Avx512Bf16 {
            continue;
        }
        let device = one_core(isa);
        let mut ops = products(isa);
        ops.retain(|op| op.name.contains(&only));
        for _ in 0..n_rounds {
            ops.iter_mut().for_each(|op| op.measure(&device));
        }
        println!(
            "\n{isa}, one core: best time, rate, share of the peak: median, lowest .. highest"
        );
        ops.iter_mut().for_each(Op::print);
    }
}
