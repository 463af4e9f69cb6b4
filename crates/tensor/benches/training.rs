//! What training computes, as a share of what the machine can do: products and convolutions of one
//! core's multiply-adds, mixing of all cores' memory, or of the caches that a block of models lies in, whichever takes
//! longer.
//!
//! `cargo bench -p moeshard-tensor --bench training`; `ROUNDS=N` (default 7), `ONLY=text` for the
//! operations whose names contain it, `ISA=avx512` for one instruction set. In each round every operation and what it is held against are
//! measured one after the other, the best of some 20 ms each, because the pace of a shared machine
//! changes from second to second. What is printed is the best time, and the median of the rounds'
//! shares with the lowest and highest of them.

use std::collections::HashSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use moeshard_tensor::collective::Solo;
use moeshard_tensor::cpu::{CpuConfig, CpuDevice, Isa, peak};
use moeshard_tensor::dtype::DType;
use moeshard_tensor::linalg::{Csr, Gemm, MatMut, MatRef, Scratch, Threads};

#[path = "support/lenet.rs"]
mod lenet;

/// How long each operation is repeated in a round.
const DURATION: Duration = Duration::from_millis(20);

/// A block of models that are mixed: half of the second-level cache of the machines at hand, and more where that
/// would be too few columns of many models.
const BLOCK_BYTES: usize = 512 << 10;
const BLOCK_COLS: usize = 128;

/// What an operation cannot do without.
#[derive(Clone, Copy)]
enum Cost {
    /// Floating-point operations, on one core.
    Flops(usize),
    /// Bytes read and written, by all cores.
    Bytes(usize),
    /// The same, and bytes that come from caches however often they are needed: what takes longer is the limit.
    Cached {
        /// From memory and to it.
        n_bytes: usize,
        /// Read from caches.
        n_cached: usize,
        /// What a cache holds of them at a time, for each core.
        block_bytes: usize,
    },
}

/// One operation.
struct Op {
    name: String,
    cost: Cost,
    /// Allocates its operands, when it is first measured.
    make: Box<dyn Fn() -> Box<dyn FnMut()>>,
    run: Option<Box<dyn FnMut()>>,
    seconds: Vec<f64>,
    shares: Vec<f64>,
}

impl Op {
    fn new<F: FnMut() + 'static>(
        name: impl Into<String>,
        cost: Cost,
        make: impl Fn() -> F + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            cost,
            make: Box::new(move || Box::new(make())),
            run: None,
            seconds: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Measures the operation and then what it is held against.
    fn measure(&mut self, machine: &Machine) {
        let seconds = shortest(self.run.get_or_insert_with(&self.make));
        let (n, most) = match self.cost {
            Cost::Flops(n) => {
                let core = &machine.one_core;
                (n, peak::flops_per_second(core, DType::F32, DURATION))
            }
            Cost::Bytes(n) => (n, peak::read_bytes_per_second(&machine.all_cores)),
            Cost::Cached {
                n_bytes,
                n_cached,
                block_bytes,
            } => {
                let cores = &machine.all_cores;
                let cached = peak::cached_bytes_per_second(cores, block_bytes, DURATION);
                let memory = peak::read_bytes_per_second(cores);
                let least = (n_bytes as f64 / memory).max(n_cached as f64 / cached);
                (n_bytes, n_bytes as f64 / least)
            }
        };
        self.seconds.push(seconds);
        self.shares.push(n as f64 / seconds / most);
    }

    fn print(&mut self) {
        self.seconds.sort_by(f64::total_cmp);
        self.shares.sort_by(f64::total_cmp);
        let (n, unit) = match self.cost {
            Cost::Flops(n) => (n, "GFLOP/s"),
            Cost::Bytes(n) | Cost::Cached { n_bytes: n, .. } => (n, "GB/s"),
        };
        let percent = |i: usize| 100.0 * self.shares[i];
        let last = self.shares.len() - 1;
        println!(
            "{:46} {:9.1} us {:7.1} {unit:7} {:5.1} %   {:5.1} .. {:5.1}",
            self.name,
            1e6 * self.seconds[0],
            1e-9 * n as f64 / self.seconds[0],
            percent(last / 2),
            percent(0),
            percent(last),
        );
    }
}

/// What operations are held against.
struct Machine {
    one_core: CpuDevice,
    all_cores: CpuDevice,
}

impl Machine {
    fn new(isa: Isa) -> Self {
        let device = |n_threads| {
            let mut config = CpuConfig::new(DType::F32, n_threads);
            config.isa = isa;
            CpuDevice::new(config, Box::new(Solo)).expect("device")
        };
        Self {
            one_core: device(1),
            all_cores: device(n_cores()),
        }
    }
}

fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
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

/// Seconds of the shortest of repeated runs. Short operations are timed many at a time: reading the
/// clock takes as long as a small product's twentieth.
fn shortest(run: &mut dyn FnMut()) -> f64 {
    let timed = |run: &mut dyn FnMut(), n_times: usize| {
        let start = Instant::now();
        (0..n_times).for_each(|_| run());
        start.elapsed().as_secs_f64() / n_times as f64
    };
    run();
    let n_times = (1e-5 / timed(run, 1)).ceil().clamp(1.0, 1e4) as usize;
    let start = Instant::now();
    let mut shortest = f64::INFINITY;
    // Long operations several times: another program's turn may fall into any of them.
    let mut n_runs = 0;
    while start.elapsed() < DURATION || n_runs < 5 {
        shortest = shortest.min(timed(run, n_times));
        n_runs += 1;
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
    let form_name = match form {
        Form::Nn => "NN",
        Form::Nt => "NT",
        Form::Tn => "TN",
    };
    let name = format!("{name}, {form_name} {m} x {n} x {k}");
    Op::new(name, Cost::Flops(2 * m * n * k), move || {
        let (a, b) = (numbers(m * k), numbers(k * n));
        let mut c = Scratch::zeroed(m * n);
        let mut gemm = Gemm::with_isa(isa).expect("instructions");
        move || {
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
        }
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

/// Models of `n_cols` weights mixed by a matrix, on all cores.
fn mixing(isa: Isa, name: &str, n_cols: usize, rows: &[Vec<u32>]) -> Op {
    let n_rows = rows.len();
    let mut starts = vec![0];
    let mut values = Vec::new();
    for row in rows {
        starts.push(starts[starts.len() - 1] + row.len());
        values.extend(row.iter().map(|_| 1.0 / row.len() as f32));
    }
    let csr = Csr::new(n_rows, starts, rows.concat(), values).expect("a matrix");
    let csr = csr.with_isa(isa).expect("instructions");
    let name = format!("mixing, {name}, {n_rows} x {n_cols}");
    let cost = Cost::Cached {
        n_bytes: 2 * n_rows * n_cols * size_of::<f32>(),
        n_cached: distinct_entries(rows) * n_cols * size_of::<f32>(),
        block_bytes: (n_rows * BLOCK_COLS * size_of::<f32>()).max(BLOCK_BYTES),
    };
    Op::new(name, cost, move || {
        let csr = csr.clone();
        let threads = Threads::new(n_cores()).expect("threads");
        let x = numbers(n_rows * n_cols);
        let mut out = Scratch::zeroed(n_rows * n_cols);
        let mut scratches = Vec::new();
        move || {
            let x = MatRef::new(&x, n_rows, n_cols).expect("a view");
            let view = MatMut::new(&mut out, n_rows, n_cols).expect("a view");
            csr.mul(&threads, &mut scratches, x, view).expect("shapes");
            black_box(&mut out);
        }
    })
}

/// Entries of rows that differ: equal ones are computed once.
fn distinct_entries(rows: &[Vec<u32>]) -> usize {
    let distinct: HashSet<_> = rows.iter().collect();
    distinct.into_iter().map(Vec::len).sum()
}

/// Each node with itself and `degree` others without a pattern.
fn random(n: usize, degree: usize) -> Vec<Vec<u32>> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % n
    };
    let mut row = |i: usize| {
        let others = (0..degree).map(|_| next() as u32);
        let mut row: Vec<_> = others.chain([i as u32]).collect();
        row.sort_unstable();
        row.dedup();
        row
    };
    (0..n).map(&mut row).collect()
}

/// Cliques of ten nodes; with `is_linked`, one of each also has a neighbour in the next.
fn cliques(n: usize, is_linked: bool) -> Vec<Vec<u32>> {
    let row = |i: usize| {
        let first = i / 10 * 10;
        let mut row: Vec<_> = (first..first + 10).map(|j| j as u32).collect();
        if is_linked && i % 10 == 9 && i + 1 < n {
            row.push(i as u32 + 1);
        }
        row
    };
    (0..n).map(row).collect()
}

/// What a round of the simulator mixes.
fn mixings(isa: Isa) -> Vec<Op> {
    let complete = |n: u32| (0..n).map(|_| (0..n).collect()).collect::<Vec<_>>();
    // Weights of the linear model and of GN-LeNet, in whole cache lines.
    const LINEAR: usize = 7856;
    const LENET: usize = 85_360;
    vec![
        mixing(isa, "random 10", LINEAR, &random(100, 10)),
        mixing(isa, "complete", LINEAR, &complete(100)),
        mixing(isa, "random 10", LINEAR, &random(1000, 10)),
        mixing(isa, "random 10", LINEAR - 6, &random(1000, 10)),
        mixing(isa, "cliques, linked", LINEAR, &cliques(1000, true)),
        mixing(isa, "cliques", LINEAR, &cliques(1000, false)),
        mixing(isa, "complete", LINEAR, &complete(1000)),
        mixing(isa, "random 10", LENET, &random(100, 10)),
        mixing(isa, "complete", LENET, &complete(100)),
        mixing(isa, "random 10", LINEAR, &random(10_000, 10)),
        mixing(isa, "cliques, linked", LINEAR, &cliques(10_000, true)),
    ]
}

/// The layers of GN-LeNet on a batch of 20, and all of it but the last layer.
fn convolutions(isa: Isa) -> Vec<Op> {
    const N_IMAGES: usize = 20;
    let mut ops = Vec::new();
    for i in 0..3 {
        let layer = move || lenet::Layer::new(isa, i, N_IMAGES);
        let (n_flops, n_values) = (layer().n_flops(), layer().n_values());
        let mut add = |what: &str, cost: Cost, run: fn(&mut lenet::Layer)| {
            let name = format!("{what} {}", i + 1);
            ops.push(Op::new(name, cost, move || {
                let mut layer = layer();
                move || run(&mut layer)
            }));
        };
        // Nobody asks for the gradient of the images.
        let back = if i == 0 { n_flops } else { 2 * n_flops };
        // What elementwise operations read and write at least.
        let passes = |n: usize| Cost::Bytes(n * size_of::<f32>() * n_values);
        add(
            "convolution forward",
            Cost::Flops(n_flops),
            lenet::Layer::convolve,
        );
        add(
            "convolution backward",
            Cost::Flops(back),
            lenet::Layer::convolve_back,
        );
        add("norm forward", passes(2), lenet::Layer::normalise);
        add("norm backward", passes(3), lenet::Layer::normalise_back);
        add("relu forward", passes(2), lenet::Layer::rectify);
        add("relu backward", passes(3), lenet::Layer::rectify_back);
        add("pool forward", passes(1), lenet::Layer::pool);
        add("pool backward", passes(1), lenet::Layer::pool_back);
    }
    let n_flops = [0, 1, 2].map(|i| lenet::Layer::new(isa, i, N_IMAGES).n_flops());
    let cost = Cost::Flops(3 * n_flops.iter().sum::<usize>() - n_flops[0]);
    ops.push(Op::new("GN-LeNet, forward and backward", cost, move || {
        let mut layers = [0, 1, 2].map(|i| lenet::Layer::new(isa, i, N_IMAGES));
        move || lenet::step(&mut layers)
    }));
    ops
}

fn main() {
    let rounds = std::env::var("ROUNDS").ok();
    let n_rounds = rounds.map_or(7, |n| n.parse().expect("ROUNDS is a number"));
    let only = std::env::var("ONLY").unwrap_or_default();
    let only_isa = std::env::var("ISA").ok();
    for isa in Isa::available() {
        // The same products of f32 as the set without pairs of bf16.
        let is_asked = only_isa
            .as_ref()
            .is_none_or(|only| *only == isa.to_string());
        if isa == Isa::Avx512Bf16 || !is_asked {
            continue;
        }
        let machine = Machine::new(isa);
        let mut ops = products(isa);
        ops.extend(convolutions(isa));
        ops.extend(mixings(isa));
        ops.retain(|op| op.name.contains(&only));
        for _ in 0..n_rounds {
            ops.iter_mut().for_each(|op| op.measure(&machine));
        }
        println!("\n{isa}: best time, rate, share of the peak: median, lowest .. highest");
        ops.iter_mut().for_each(Op::print);
    }
}
