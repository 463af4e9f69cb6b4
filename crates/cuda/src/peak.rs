//! What a GPU could do at most, measured: the roofline that its operations are compared with.

use std::slice;
use std::time::{Duration, Instant};

use moeshard_tensor::device::Result;
use moeshard_tensor::dtype::DType;

use crate::device::CudaDevice;
use crate::driver::{Driver, Launch, MOST_ARGS};
use crate::weights::Buffer;

/// As many as keep every multiprocessor busy.
const BLOCKS_AT_ONCE: u32 = 8;
const THREADS: u32 = 256;
/// Sums of a thread or warp.
const N_CHAINS: u64 = 8;
/// Operations of a product of 16 × 16 by 16 × 8.
const MMA_FLOPS: u64 = 2 * 16 * 8 * 16;
/// Bytes that are read at least.
const LEAST_READ: usize = 256 << 20;
/// Repetitions; the best one counts.
const N_ROUNDS: usize = 5;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Steps of each chain of products.
    pub n_steps: u32,
    /// Bytes that are read: several times the second-level cache.
    pub read_bytes: usize,
}

impl Effort {
    /// For a GPU: some milliseconds each.
    pub const GPU: Self = Self {
        n_steps: 1 << 15,
        read_bytes: 2 << 30,
    };
}

/// What a GPU could do at most.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Operations per second of the plain units in f32, a multiply-add being two.
    pub f32_flops: f64,
    /// Of the tensor cores, by the instruction that every GPU from Ampere on has (`mma.sync`), in the
    /// device's 16-bit dtype; the same as `f32_flops` if it has none.
    pub weights_flops: f64,
    /// Bytes per second of reading memory.
    pub read_bytes: f64,
}

impl Peak {
    /// Measures a device.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn measure<R: Driver>(device: &CudaDevice<R>, effort: Effort) -> Result<Self> {
        let n_blocks = BLOCKS_AT_ONCE * device.driver().properties().n_multiprocessors;
        let out = Buffer::zeroed(&device.heap, n_blocks as usize * size_of::<f32>())?;
        let n_threads = u64::from(n_blocks * THREADS);
        let steps = u64::from(effort.n_steps);
        let kernel = |kernel, words: &[u64]| {
            let mut args = [0; MOST_ARGS];
            args[..words.len()].copy_from_slice(words);
            Launch {
                kernel,
                stream: 0,
                grid: [n_blocks, 1],
                threads: THREADS,
                shared_bytes: 0,
                args,
                n_args: words.len(),
            }
        };
        let factor = u64::from(0.5_f32.to_bits());
        let fma = kernel("peak_fma", &[steps, factor, out.at()]);
        let f32_flops = (2 * N_CHAINS * steps * n_threads) as f64 / shortest(device, &fma)?;
        let mma = |name| kernel(name, &[steps, out.at()]);
        let mma = match device.config.dtype {
            DType::F32 => None,
            DType::BF16 => Some(mma("peak_mma_bf16")),
            DType::F16 => Some(mma("peak_mma_f16")),
        };
        let weights_flops = match mma {
            Some(mma) => {
                let flops = MMA_FLOPS * N_CHAINS * steps * (n_threads / 32);
                flops as f64 / shortest(device, &mma)?
            }
            None => f32_flops,
        };
        // Less if a model has filled the GPU; still more than its caches.
        let mut read_bytes = effort.read_bytes;
        let memory = loop {
            match Buffer::zeroed(&device.heap, read_bytes) {
                Err(_) if read_bytes > LEAST_READ => read_bytes /= 2,
                memory => break memory?,
            }
        };
        let n_chunks = (read_bytes / 16) as u64;
        let read = kernel("peak_read", &[memory.at(), n_chunks, out.at()]);
        Ok(Self {
            f32_flops,
            weights_flops,
            read_bytes: read_bytes as f64 / shortest(device, &read)?,
        })
    }
}

/// Seconds of the shortest of repeated launches, the first not counted.
fn shortest<R: Driver>(device: &CudaDevice<R>, launch: &Launch) -> Result<f64> {
    let mut shortest = Duration::MAX;
    for round in 0..=N_ROUNDS {
        let start = Instant::now();
        // SAFETY: the kernels of `peak.cu` with what they take; buffers are as large.
        unsafe { device.driver.launch(slice::from_ref(launch))? };
        device.driver.wait()?;
        if round > 0 {
            shortest = shortest.min(start.elapsed());
        }
    }
    Ok(shortest.as_secs_f64())
}
