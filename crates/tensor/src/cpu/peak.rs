//! What a device could do at most, measured on its own threads and instructions: the roofline that
//! its operations are compared with.

use std::hint::black_box;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use super::gemm::kernel::Bf16Dot;
use super::gemm::kernel::{F32, IsaWork, Kernel, on_isa};
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2Lanes, Avx512Lanes};
use super::lanes::{LANES, Lanes, PortableLanes};
use super::panels::Element;
use super::parallel::Parallel;
use super::{CpuDevice, pages};
use crate::dtype::DType;

/// How long a measurement repeats itself where nothing else is asked. The best repetition counts:
/// whatever else runs on the machine can only lower it.
pub const DURATION: Duration = Duration::from_millis(300);

/// Steps of a piece of work: about 0.02 ms, so that a repetition fits between two of another
/// program's turns.
const N_STEPS: usize = 1 << 13;

/// Pieces per thread, so that a thread which wakes up late costs little.
const PIECES_PER_THREAD: usize = 16;

/// Bytes that are read: several times the last-level cache of most machines.
const READ_BYTES: usize = 512 << 20;

/// Parts that are read in turn: one takes about a millisecond, and the others have driven it out of
/// the caches when it comes round.
const N_PARTS: usize = 8;

/// Bytes of a piece of reading.
const READ_CHUNK: usize = 1 << 20;

/// Floating-point operations of the instruction that multiplies weights of `dtype`, with all
/// operands in registers, in the best of the repetitions that fit in `duration`.
///
/// # Units
/// Operations per second of all threads, a multiply-add being two.
pub fn flops_per_second(device: &CpuDevice, dtype: DType, duration: Duration) -> f64 {
    let parallel = &device.compute.parallel;
    // SAFETY: `CpuDevice::new` checks the instructions. As many chains as hide the latency of an
    // instruction (8 to 12 are in flight at once), and as few as the registers hold.
    unsafe {
        match (device.config.isa, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, DType::BF16) => {
                products_per_second::<Bf16Dot, 16>(parallel, duration)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, _) => {
                products_per_second::<F32<Avx512Lanes>, 16>(parallel, duration)
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => products_per_second::<F32<Avx2Lanes>, 6>(parallel, duration),
            _ => products_per_second::<F32<PortableLanes>, 2>(parallel, duration),
        }
    }
}

/// Reading memory in order, from far outside of the caches.
///
/// # Units
/// Bytes per second of all threads.
pub fn read_bytes_per_second(device: &CpuDevice) -> f64 {
    let (parallel, isa) = (&device.compute.parallel, device.config.isa);
    let chunk = READ_CHUNK / size_of::<f32>();
    let mut data = pages::zeroed::<f32>(READ_BYTES / size_of::<f32>());
    // Memory that was never written is one page of zeros.
    parallel.for_each_chunk(&mut data, chunk, |_, data| data.fill(1.0));
    let read = |chunk_idx: usize| {
        let data = &data[chunk_idx * chunk..(chunk_idx + 1) * chunk];
        // SAFETY: `CpuDevice::new` checks the instructions.
        unsafe { read(isa, data) };
    };
    let n_chunks = READ_BYTES / READ_CHUNK / N_PARTS;
    let mut part_idx = 0;
    let shortest = shortest(DURATION, || {
        parallel.for_each(n_chunks, |i| read(part_idx * n_chunks + i));
        part_idx = (part_idx + 1) % N_PARTS;
    });
    (READ_BYTES / N_PARTS) as f64 / shortest
}

/// Reading `n_bytes` again and again, each thread its own: from the cache that holds as much.
///
/// # Units
/// Bytes per second of all threads.
pub fn cached_bytes_per_second(device: &CpuDevice, n_bytes: usize, duration: Duration) -> f64 {
    const N_TIMES: usize = 32;
    let (parallel, isa) = (&device.compute.parallel, device.config.isa);
    let chunk = (n_bytes / size_of::<f32>()).max(1);
    let mut data = pages::zeroed::<f32>(chunk * parallel.n_threads());
    parallel.for_each_chunk(&mut data, chunk, |_, data| data.fill(1.0));
    let shortest = shortest(duration, || {
        parallel.for_each(parallel.n_threads(), |i| {
            for _ in 0..N_TIMES {
                // SAFETY: `CpuDevice::new` checks the instructions.
                unsafe { read(isa, black_box(&data[i * chunk..(i + 1) * chunk])) };
            }
        });
    });
    (N_TIMES * data.len() * size_of::<f32>()) as f64 / shortest
}

/// Adds up all numbers.
///
/// # Safety
/// The machine has `isa`.
unsafe fn read(isa: Isa, data: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                on_isa(isa, &Read::<Avx512Lanes>(data, PhantomData));
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => on_isa(isa, &Read::<Avx2Lanes>(data, PhantomData)),
            _ => on_isa(isa, &Read::<PortableLanes>(data, PhantomData)),
        }
    }
}

/// Seconds of the shortest of repeated runs.
fn shortest(duration: Duration, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut shortest = f64::INFINITY;
    while start.elapsed() < duration {
        let start = Instant::now();
        run();
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    shortest
}

/// # Safety
/// The machine has `K::ISA`.
unsafe fn products_per_second<K: Kernel, const N: usize>(
    parallel: &Parallel,
    duration: Duration,
) -> f64 {
    let n_pieces = PIECES_PER_THREAD * parallel.n_threads();
    let mut numbers = [0.0; 2 * LANES];
    for (i, x) in numbers.iter_mut().enumerate() {
        *x = 0.5 + i as f32 / 64.0;
    }
    let shortest = shortest(duration, || {
        parallel.for_each(n_pieces, |_| {
            let chains = Chains::<K, N> {
                numbers: black_box(&numbers),
                kernel: PhantomData,
            };
            // SAFETY: the caller's promise.
            unsafe { on_isa(K::ISA, &chains) };
        });
    });
    let flops = 2 * N * N_STEPS * LANES * K::Weight::STEP;
    (n_pieces * flops) as f64 / shortest
}

/// `N` sums that grow by one product a step, each waiting only for itself.
struct Chains<'a, K, const N: usize> {
    numbers: &'a [f32; 2 * LANES],
    kernel: PhantomData<K>,
}

impl<K: Kernel, const N: usize> IsaWork for Chains<'_, K, N> {
    #[inline(always)]
    unsafe fn run(&self) {
        const { assert!(N <= LANES, "chains must begin with different numbers") };
        let mut a = [<K::A as bytemuck::Zeroable>::zeroed(); LANES];
        let w = self.numbers.map(K::Weight::from_f32);
        let mut out = [0.0; LANES];
        // SAFETY: the machine has `K::ISA` by the caller's promise; a step of `w` is sixteen times
        // `STEP` weights, of which there are at most two; `convert` reads as many numbers.
        unsafe {
            K::convert(self.numbers.as_ptr(), &mut a);
            let w = K::load(w.as_ptr());
            let x = K::splat(&a[0]);
            // Chains that began alike could be computed as one.
            let first = |i: usize| K::add_product(K::Sums::zero(), K::splat(&a[i]), w);
            let mut sums: [K::Sums; N] = std::array::from_fn(first);
            for _ in 0..N_STEPS {
                for sum in &mut sums {
                    *sum = K::add_product(*sum, x, w);
                }
            }
            for sum in sums {
                sum.store(out.as_mut_ptr());
                black_box(&out);
            }
        }
    }
}

/// Adds up all numbers, from several places at once: a core has more reads under way than it
/// foresees in one place.
struct Read<'a, L>(&'a [f32], PhantomData<L>);

impl<L: Lanes> IsaWork for Read<'_, L> {
    #[inline(always)]
    unsafe fn run(&self) {
        const N: usize = 4;
        let part = self.0.len() / N;
        let mut out = [0.0; LANES];
        // SAFETY: the machine has `L::ISA` by the caller's promise, and sixteen numbers from `at` on
        // lie within each part.
        unsafe {
            let one = L::splat(1.0);
            let mut sums = [L::zero(); N];
            for at in (0..part / LANES).map(|i| i * LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let from = self.0.as_ptr().add(i * part + at);
                    *sum = sum.add_product(L::load_f32(from), one);
                }
            }
            for sum in sums {
                sum.store(out.as_mut_ptr());
                black_box(&out);
            }
        }
    }
}
